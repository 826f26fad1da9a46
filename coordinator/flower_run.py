"""The coordinator's ServerApp, run in this process: here are the keys, and here they stay.

    def main(grid: Grid, context: Context) -> int:
        return len(list(grid.get_node_ids()))

    run_server_app(Path("federation"), main)

Flower would start a ServerApp in a process of its own from the bundle it was sent. Instead this
process starts a run with the bundle that carries no code, takes the run's ServerApp task from the
SuperLink by the secret, and calls `main` with the run's grid. The run ends with `main`, however it
ends.

Calls wait for a SuperLink that restarts. One that is away for more than a minute has forgotten that
the run lives, and gives it up: then a new run is started and `main` is called again, so `main` must
be able to go on from what it has stored, as after a kill.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from contracts.app_bundle import app_bundle, app_bundle_sha256, app_project
from contracts.flower_environment import set_flower_environment
from coordinator.superlink import FLOWER_HOME, lock
from coordinator.superlink_application import superlink_secret
from genkd.errors import ConfigurationError, CoordinatorUnreachable, GenKDError, Stopped

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

    from contracts.flower_private import ControlHttpClient, RuntimeHttpClient
    from coordinator.superlink_calls import SuperLinkCalls

T = TypeVar("T")

LOCK = "run.lock"
# For a SuperLink that is being started beside us.
SECONDS_TO_START = 10.0
# The SuperLink gives a task up that it has not heard of for 60 s; so long a call waits for it.
SECONDS_OF_PATIENCE = 60.0
SECONDS_BETWEEN_HEARTBEATS = 5.0
SECONDS_TO_GET_THE_TASK = 30.0
SECONDS_TO_SAY_GOODBYE = 2.0
# Runs begun for one call of `run_server_app`: one, and one for each that the SuperLink gave up.
MAX_RUNS = 5
RUNS_LISTED = 100
SERVE_HINT = "see what 'genkd-coordinator serve' says"


def run_server_app(federation: Path, main: Callable[[Grid, Context], T]) -> T:
    """Run `main` as the ServerApp of a new Flower run on the SuperLink that serves `federation`.

    Runs of an earlier process that were left open, by a kill, are stopped first. SIGTERM ends
    `main` by an exception where it stands, unless the caller has set a handler of its own.

    Args:
        federation: The folder of the running SuperLink.
        main: The ServerApp's work; called again, with another grid, if the SuperLink was away for
            so long that the run was lost.

    Returns:
        What `main` returns.

    Raises:
        ConfigurationError: If another process runs rounds for this folder, or the SuperLink refuses
            the run.
        CoordinatorUnreachable: If no SuperLink answers for a minute, or it loses run after run.
        Stopped: At SIGTERM.
    """
    from coordinator.superlink_calls import RunLost

    set_flower_environment(federation / FLOWER_HOME)
    taken = f"another process runs the rounds of {federation}"
    with lock(federation / LOCK, taken), _sigterm_stops():
        for _ in range(MAX_RUNS - 1):
            with contextlib.suppress(RunLost):
                return _run_once(federation, main)
        return _run_once(federation, main)


def _run_once(federation: Path, main: Callable[[Grid, Context], T]) -> T:
    from coordinator.superlink_calls import SuperLinkCalls, control_client

    calls = SuperLinkCalls(federation, patience=SECONDS_TO_START)
    with control_client(calls) as control:
        _stop_open_runs(control)
        run_id = _start_run(control)
    try:
        token = _take_task(calls, run_id, superlink_secret(federation))
        calls.patience = SECONDS_OF_PATIENCE
        with _task(calls, token) as (grid, context):
            return main(grid, context)
    finally:
        calls.patience = SECONDS_TO_SAY_GOODBYE
        # Asked for its runs, the SuperLink throws away the messages of those that are over.
        with contextlib.suppress(GenKDError), control_client(calls) as control:
            _stop_open_runs(control)


def _stop_open_runs(control: ControlHttpClient) -> None:
    """End every run that is not over: nobody but us starts runs here, and we hold the lock."""
    import httpx

    from contracts.flower_private import ListRunsRequest, Status, StopRunRequest

    runs = control.ListRuns(ListRunsRequest(limit=RUNS_LISTED)).run_dict
    for run_id, run in runs.items():
        if run.status.status != Status.FINISHED:
            with contextlib.suppress(httpx.HTTPStatusError):  # it has just ended by itself
                control.StopRun(StopRunRequest(run_id=run_id))


def _start_run(control: ControlHttpClient) -> int:
    """Start a run with the bundle that carries no code, and return its number."""
    from contracts.flower_private import Fab, StartRunRequest, fab_to_proto

    bundle = Fab(app_bundle_sha256(), app_bundle(), {})
    run_id = int(control.StartRun(StartRunRequest(fab=fab_to_proto(bundle))).run_id)
    if run_id == 0:
        raise ConfigurationError("the SuperLink does not start a run", hint=SERVE_HINT)
    return run_id


def _runtime_client(calls: SuperLinkCalls, *interceptors: object) -> RuntimeHttpClient:
    from contracts.flower_private import RuntimeHttpClient, RuntimeVersionHttpInterceptor
    from coordinator.superlink_calls import NOWHERE

    version = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
    return RuntimeHttpClient.from_server_address(
        NOWHERE,
        insecure=True,
        root_certificates=None,
        interceptors=[version, *interceptors, calls],  # type: ignore[list-item]
    )


def _take_task(calls: SuperLinkCalls, run_id: int, secret: bytes) -> str:
    """Claim the run's ServerApp task and return the token that stands for it."""
    from contracts.flower_private import (
        ACQUIRE_TASK,
        AcquireTaskRequest,
        SuperExecAuthHttpInterceptor,
        TaskType,
    )
    from coordinator.superlink_calls import RunLost

    proof = SuperExecAuthHttpInterceptor(
        master_secret=secret, protected_methods=frozenset({ACQUIRE_TASK})
    )
    wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP.value])
    until = time.monotonic() + SECONDS_TO_GET_THE_TASK
    with _runtime_client(calls, proof) as client:
        while time.monotonic() < until:
            try:
                answer = client.AcquireTask(wanted)
            except RunLost as error:
                raise ConfigurationError(
                    "the SuperLink does not take the secret in superlink.secret",
                    hint="restart 'genkd-coordinator serve': the file has changed since it began",
                ) from error
            if answer.HasField("task") and answer.task.run_id == run_id:
                return str(answer.token)
            time.sleep(0.1)
    raise CoordinatorUnreachable("the SuperLink does not hand out the run's task", hint=SERVE_HINT)


@contextlib.contextmanager
def _task(calls: SuperLinkCalls, token: str) -> Iterator[tuple[Grid, Context]]:
    """The task as a grid and a context; how the block ends is how the task ended.

    Raises:
        CoordinatorUnreachable: In the block, if the SuperLink goes away.
        RunLost: In the block, if it has given the run up.
    """
    import httpx

    from contracts.flower_private import (
        PullTaskInputRequest,
        PushTaskOutputRequest,
        RuntimeTokenHttpInterceptor,
        SubStatus,
        TaskIdentity,
        context_from_proto,
        grid_over,
        run_from_proto,
    )
    from coordinator.superlink_calls import refused

    client = _runtime_client(calls, RuntimeTokenHttpInterceptor(token))
    heartbeats = _Heartbeats(calls.federation, token)
    status, details = SubStatus.FAILED, ""
    try:
        given = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = given.task_id
        TaskIdentity.run_id = given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        context = context_from_proto(given.context)
        context.run_config = tomllib.loads(app_project())["tool"]["flwr"]["app"]["config"]
        yield grid_over(client, run_from_proto(given.run), token), context
        status = SubStatus.COMPLETED
    except (Stopped, KeyboardInterrupt):
        status = SubStatus.STOPPED
        raise
    except httpx.HTTPStatusError as error:
        raise refused(error) from error
    except BaseException as error:
        details = type(error).__name__
        raise
    finally:
        heartbeats.stop()
        calls.patience = SECONDS_TO_SAY_GOODBYE
        with contextlib.suppress(GenKDError, httpx.HTTPError):
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        client.close()


class _Heartbeats:
    """Tells the SuperLink every few seconds that the task is alive, whatever `main` is doing.

    A beat that meets nobody is no event: the calls of `main` find out. Flower's own sender would
    raise SIGINT in this process.
    """

    def __init__(self, federation: Path, token: str) -> None:
        from contracts.flower_private import RuntimeTokenHttpInterceptor
        from coordinator.superlink_calls import SuperLinkCalls

        calls = SuperLinkCalls(federation, patience=0.0)
        self._client = _runtime_client(calls, RuntimeTokenHttpInterceptor(token))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="task heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        import httpx

        from contracts.flower_private import SendTaskHeartbeatRequest

        while not self._stopped.wait(SECONDS_BETWEEN_HEARTBEATS):
            with contextlib.suppress(GenKDError, httpx.HTTPError):
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(SECONDS_TO_SAY_GOODBYE)
        self._client.close()


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[None]:
    """SIGTERM raises `Stopped` in the block, where nobody has said what else it does."""

    def on_sigterm(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Stopped(
            "stopped by SIGTERM", hint="repeat the same command: it goes on from what is stored"
        )

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

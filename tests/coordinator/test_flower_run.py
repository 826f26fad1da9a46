"""The ServerApp in this process, on a real SuperLink with a real SuperNode: work, ends, faults."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from coordinator import flower_run
from coordinator.flower_run import run_server_app
from coordinator.superlink_calls import RunLost, SuperLinkCalls, control_client
from genkd.errors import ConfigurationError, CoordinatorUnreachable, Stopped
from tests.coordinator.conftest import wait_for

ROOT = Path(__file__).parents[2]


class Mishap(Exception):
    """What goes wrong in a test's `main`."""


def status_of(served: Any, run_id: int) -> tuple[str, str]:
    from contracts.flower_private import ListRunsRequest

    with control_client(SuperLinkCalls(served.folder, patience=10)) as control:
        run = control.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
    return run.status.status, run.status.sub_status


def stop_run(served: Any, run_id: int) -> None:
    from contracts.flower_private import StopRunRequest

    with control_client(SuperLinkCalls(served.folder, patience=10)) as control:
        control.StopRun(StopRunRequest(run_id=run_id))


def echo(grid: Grid, node_id: int, data: bytes, seconds: float = 0.0) -> str:
    content = RecordDict({"request": ConfigRecord({"data": data, "seconds": seconds})})
    (message_id,) = grid.push_messages([Message(content, node_id, "query.echo", ttl=600)])
    assert message_id
    return str(message_id)


def answer(grid: Grid, message_id: str, seconds: float = 60) -> bytes:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for message in grid.pull_messages([message_id]):
            assert not message.has_error(), message.error
            data = message.content["reply"]["data"]
            assert isinstance(data, bytes)
            return data
        time.sleep(0.1)
    raise AssertionError(f"no answer within {seconds} s")


# Work


def test_main_reaches_the_nodes_and_its_value_is_returned(served: Any, connected_node: int) -> None:
    seen: list[Context] = []

    def main(grid: Grid, context: Context) -> bytes:
        seen.append(context)
        assert list(grid.get_node_ids()) == [connected_node]
        return answer(grid, echo(grid, connected_node, b"a student"))

    assert run_server_app(served.folder, main) == b"a student"
    assert seen[0].run_config["protocol"] == 1
    assert status_of(served, seen[0].run_id) == ("finished", "completed")
    # Students do not pile up in Flower's database.
    with sqlite3.connect(f"file:{served.folder}/superlink.sqlite?mode=ro", uri=True) as database:
        assert database.execute("SELECT count(*) FROM objects").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM message_ins").fetchone() == (0,)


def test_keys_stay_here_because_main_runs_in_this_process(served: Any) -> None:
    assert run_server_app(served.folder, lambda _grid, _context: os.getpid()) == os.getpid()


# Ends


@pytest.mark.parametrize(
    ("error", "sub_status"),
    [(Mishap("a key: 5a5a"), "failed"), (KeyboardInterrupt(), "stopped")],
    ids=["error", "ctrl-c"],
)
def test_a_run_ends_as_its_main_ends(served: Any, error: BaseException, sub_status: str) -> None:
    run_ids = []

    def main(_grid: Grid, context: Context) -> None:
        run_ids.append(context.run_id)
        raise error

    with pytest.raises(type(error)):
        run_server_app(served.folder, main)
    assert status_of(served, run_ids[0]) == ("finished", sub_status)
    assert b"5a5a" not in (served.folder / "superlink.sqlite").read_bytes()


def test_sigterm_ends_main_where_it_stands(served: Any) -> None:
    run_ids = []

    def main(_grid: Grid, context: Context) -> None:
        run_ids.append(context.run_id)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    began = time.monotonic()
    with pytest.raises(Stopped, match="SIGTERM") as caught:
        run_server_app(served.folder, main)
    assert time.monotonic() - began < 20
    assert "repeat the same command" in caught.value.hint
    assert status_of(served, run_ids[0]) == ("finished", "stopped")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_caller_s_own_handler_stays_in_force(served: Any) -> None:
    arrived: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: arrived.append(number))
    try:
        run_server_app(served.folder, lambda _g, _c: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert arrived == [signal.SIGTERM]


def test_two_processes_cannot_run_the_rounds_of_one_federation(served: Any) -> None:
    def main(_grid: Grid, _context: Context) -> None:
        run_server_app(served.folder, lambda _g, _c: None)

    with pytest.raises(ConfigurationError, match="another process runs the rounds"):
        run_server_app(served.folder, main)


def test_a_run_that_a_killed_process_left_open_is_stopped(served: Any) -> None:
    from contracts.app_bundle import app_bundle, app_bundle_sha256
    from contracts.flower_private import Fab, StartRunRequest, fab_to_proto

    fab = fab_to_proto(Fab(app_bundle_sha256(), app_bundle(), {}))
    with control_client(SuperLinkCalls(served.folder, patience=10)) as control:
        left = control.StartRun(StartRunRequest(fab=fab)).run_id
    assert status_of(served, left)[0] == "pending"
    assert run_server_app(served.folder, lambda _g, context: context.run_id) != left
    assert status_of(served, left) == ("finished", "stopped")


# Faults


def test_a_superlink_that_is_killed_and_comes_back_loses_nothing(
    served: Any, connected_node: int
) -> None:
    """Its token and its loopback port are others then; the node finds it by the public port."""
    run_ids = set()
    log = served.home / "node.log"

    def main(grid: Grid, context: Context) -> bytes:
        run_ids.add(context.run_id)
        taken = log.read_text().count("Received successfully")
        message_id = echo(grid, connected_node, b"on its way", seconds=5)
        # One that is killed while it hands a message out has lost it.
        wait_for(lambda: log.read_text().count("Received successfully") > taken, 60, log)
        before = served.running
        served.kill()
        back = threading.Timer(3, served.start)
        back.start()
        list(grid.get_node_ids())  # waits for it
        back.join()
        wait_for(lambda: list(grid.get_node_ids()) == [connected_node], 120, log)
        assert served.running.private != before.private
        assert served.running.token != before.token
        return answer(grid, message_id, seconds=90)

    assert run_server_app(served.folder, main) == b"on its way"
    assert len(run_ids) == 1


def test_a_run_that_the_superlink_gave_up_is_begun_anew(served: Any) -> None:
    run_ids = []

    def main(grid: Grid, context: Context) -> str:
        run_ids.append(context.run_id)
        if len(run_ids) == 1:
            stop_run(served, context.run_id)
            list(grid.get_node_ids())
            raise AssertionError("the run was over")
        return "went on"

    assert run_server_app(served.folder, main) == "went on"
    assert len(set(run_ids)) == 2


def test_run_after_run_lost_is_an_error_and_no_loop(served: Any) -> None:
    run_ids = []

    def main(grid: Grid, context: Context) -> None:
        run_ids.append(context.run_id)
        stop_run(served, context.run_id)
        list(grid.get_node_ids())

    with pytest.raises(RunLost, match="given up this run"):
        run_server_app(served.folder, main)
    assert len(run_ids) == flower_run.MAX_RUNS


def test_a_run_lives_while_main_is_at_work_without_a_call(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge takes longer than the minute that the SuperLink waits; time is made short here."""
    monkeypatch.setattr(flower_run, "SECONDS_BETWEEN_HEARTBEATS", 0.2)

    def active_until() -> str:
        query = "SELECT max(active_until) FROM task WHERE finished_at IS NULL"
        with sqlite3.connect(f"file:{served.folder}/superlink.sqlite?mode=ro", uri=True) as file:
            return str(file.execute(query).fetchone()[0])

    def main(_grid: Grid, _context: Context) -> tuple[str, str]:
        first = active_until()
        time.sleep(2)
        return first, active_until()

    first, second = run_server_app(served.folder, main)
    assert first < second


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_superlink_that_stays_away_is_said_with_what_to_do(
    served: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(flower_run, "SECONDS_OF_PATIENCE", 1.0)

    def main(grid: Grid, _context: Context) -> None:
        getattr(served, end)()
        list(grid.get_node_ids())

    began = time.monotonic()
    try:
        with pytest.raises(CoordinatorUnreachable) as caught:
            run_server_app(served.folder, main)
        assert time.monotonic() - began < 30
        assert "genkd-coordinator serve" in caught.value.hint
    finally:
        served.start()


def test_without_a_superlink_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_run, "SECONDS_TO_START", 0.3)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(CoordinatorUnreachable, match="no SuperLink serves") as caught:
        run_server_app(tmp_path, lambda _grid, _context: None)
    assert "genkd-coordinator serve" in caught.value.hint


def test_a_secret_that_is_not_the_superlink_s_is_said(served: Any) -> None:
    path = served.folder / "superlink.secret"
    right = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(ConfigurationError, match="secret") as caught:
            run_server_app(served.folder, lambda _grid, _context: None)
        assert "restart" in caught.value.hint
        assert path.read_bytes() != right
    finally:
        path.write_bytes(right)


def test_what_is_called_when_it_is_called_again_sees_the_token_of_the_new_superlink(
    served: Any, make_node_key: Callable[[], Any]
) -> None:
    served.stop()
    served.start()
    assert run_server_app(served.folder, lambda grid, _c: list(grid.get_node_ids())) is not None


# Whatever leaves this machine, or asks for a name, ends the process.
OFFLINE = """
import os, sys
from pathlib import Path
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" else arguments[0]
        if host != "127.0.0.1":
            print(event, arguments, flush=True)
            os._exit(1)
sys.addaudithook(watch)
import flwr.app
from coordinator.flower_run import run_server_app
print(run_server_app(Path(sys.argv[1]), lambda grid, context: len(list(grid.get_node_ids()))))
"""


def test_none_of_this_asks_another_host_for_anything(served: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(served.folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().isdigit()
    assert served.outside == ""

"""Keep a membership running: Flower's SuperNode, and the executor that answers for this node.

    run_membership(Path("membership"), settings)        # until SIGTERM or Ctrl-C

The two are processes of their own. The **SuperNode** is Flower's: it holds the connection to the
coordinator, and runs no app, for it is started with `--isolation process`. The **executor** is
ours, see `node.executor`. Whichever ends is started again, the sooner the longer it had run; when
the executor ends, so does the SuperNode, which might wait for an answer that died with it, and when
a SuperNode that was connected ends, so does the executor, which might keep a question for it. While
the coordinator does not answer, the SuperNode tries again by itself.

What they say goes to two bounded logs in the folder. People are told in a line what changed:
connected, away, why something ended.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from contracts.flower_environment import flower_environment
from genkd.console import printable, say
from genkd.errors import ConfigurationError, ResourceExhausted
from genkd.layered_settings import PREFIX, FederationSettings
from node.child_process import BoundedLog, ChildProcess
from node.membership import Joined, Membership, Running
from node.supernode_process import SECONDS_AWAY

LOOPBACK = "127.0.0.1"
SUPERNODE, EXECUTOR = "SuperNode", "executor"
# Together below ten seconds: the executor ends first, so that an answer under way still leaves.
SECONDS_TO_END = {EXECUTOR: 2.5, SUPERNODE: 6.0}
LONGEST_PAUSE = 15.0  # of 1, 2, 4 ... seconds
SECONDS_OF_HEALTH = 60.0

# What flwr 1.41 says, and what it means. `tests/node/test_supernode.py` lets it say each.
CONNECTED = re.compile(r"SuperNode ID: ([0-9]{1,20})")
NO_CONNECTION = "Connection attempt failed"
CONNECTED_AGAIN = "Connection successful"
PORT_TAKEN = "address already in use"
TLS_FAILED = "SSL/TLS handshake error"
NOT_ACTIVATED = "Failed to activate SuperNode"

LOST_PORT = "another program took its port"


class _Keeper:
    """Starts, hears and ends the two processes."""

    def __init__(
        self,
        membership: Membership,
        joined: Joined,
        settings: FederationSettings,
        announce: Callable[[str], None],
    ) -> None:
        self._membership = membership
        self._coordinator = joined.coordinator
        self._announce = announce
        self._environment = flower_environment(membership.flower_home)
        self._settings = _settings_variables(settings)
        self._logs = {
            name: BoundedLog(membership.folder / f"{name.lower()}.log")
            for name in (SUPERNODE, EXECUTOR)
        }
        self._children: dict[str, ChildProcess] = {}
        self._due = dict.fromkeys(self._logs, 0.0)
        self._failures = dict.fromkeys(self._logs, 0)
        self._port = _free_port()
        self._state: Running | None = None
        self._said = ""  # the last line to people about an end, so that it is said once
        self._heard = ""  # why the SuperNode is about to end, as far as it said

    def run(self, wake: int, stop: Callable[[], bool]) -> None:
        """Keep both until `stop`; `wake` becomes readable with every signal."""
        try:
            while not stop():
                self._start_due()
                self._listen(wake)
                for name in list(self._children):
                    self._look_after(name)
        finally:
            for name in (EXECUTOR, SUPERNODE):
                if name in self._children:
                    self._children.pop(name).end(SECONDS_TO_END[name])

    # -------------------------------------------------------------- starting

    def _start_due(self) -> None:
        now = time.monotonic()
        for name, log in self._logs.items():
            if name in self._children or self._due[name] > now:
                continue
            environment = self._environment
            if name == EXECUTOR:
                environment = environment | self._settings
            try:
                self._children[name] = ChildProcess(name, self._command(name), environment, log)
            except OSError as error:  # too many processes, no memory for one
                self._due[name] = now + LONGEST_PAUSE
                self._tell(f"the {name} cannot be started: {error.strerror}; trying again")
                continue
            if name == SUPERNODE:
                self._heard = ""
                self._note("starting")

    def _command(self, name: str) -> list[str | Path]:
        # -P: a folder called `node` or `flwr` where we happen to stand is not ours.
        python = [sys.executable, "-P", "-m"]
        membership = self._membership
        if name == EXECUTOR:
            address = f"{LOOPBACK}:{self._port}"
            return [
                *(*python, "node.executor", "--ends-with-input"),
                *("--membership", membership.folder, "--runtime-api-address", address),
            ]
        number = membership.supernode_number()
        former = () if number is None else ("--former-self", str(number))
        return [
            *(*python, "node.supernode_process", *former, "--superlink", self._coordinator),
            *("--root-certificates", membership.ca),
            *("--auth-supernode-private-key", membership.key),
            *("--host", LOOPBACK, "--port", str(self._port)),
            *("--isolation", "process", "--superexec-auth-secret-file", membership.secret),
        ]

    # -------------------------------------------------------------- hearing

    def _listen(self, wake: int) -> None:
        """Wait until something is said, ends, or is due."""
        waiting = [due for name, due in self._due.items() if name not in self._children]
        timeout = None if not waiting else max(0.0, min(waiting) - time.monotonic())
        with selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ)
            for child in self._children.values():
                if not child.silent:
                    selector.register(child.output, selectors.EVENT_READ)
            selector.select(timeout)
        _drain(wake)

    def _look_after(self, name: str) -> None:
        child = self._children.get(name)
        if child is None:
            return
        status = child.exit_status()  # before its last words are read
        for line in child.lines():
            if name == SUPERNODE:
                self._hear(line)
        if status is not None:
            child.close()
            del self._children[name]
            self._ended(name, status, time.monotonic() - child.started)

    def _hear(self, line: str) -> None:
        """Understand what the SuperNode says."""
        connected = CONNECTED.search(line)
        if connected is not None:
            self._keep(lambda: self._membership.note_supernode_number(int(connected[1])))
        if connected is not None or CONNECTED_AGAIN in line:
            if self._state is None or self._state.supernode != "connected":
                self._announce(f"connected to the coordinator at {self._coordinator}")
            self._said = ""
            self._note("connected")
        elif NO_CONNECTION in line:
            reason = f"the coordinator at {self._coordinator} does not answer"
            if self._state is None or self._state.supernode != "away":
                self._tell(f"{reason}; trying again until it does")
            self._note("away", reason)
        elif PORT_TAKEN in line.lower():
            self._heard = LOST_PORT
        elif TLS_FAILED in line:
            self._heard = "the coordinator's certificate is not one of this federation"
        elif NOT_ACTIVATED in line:
            self._heard = "the coordinator does not know its key, or still holds it for present"

    # -------------------------------------------------------------- ending

    def _ended(self, name: str, status: int, seconds: float) -> None:
        """Say why, and when it is started again."""
        reason = f"status {status}, see {self._logs[name].path}"
        was_connected = self._state is not None and self._state.supernode in ("connected", "away")
        if name == EXECUTOR:
            if SUPERNODE in self._children:
                self._children.pop(SUPERNODE).end(SECONDS_TO_END[SUPERNODE])
                # What it was asked is lost, and asked again once it was seen to be away.
                self._due[SUPERNODE] = time.monotonic() + SECONDS_AWAY
        elif status == 0:  # Flower ends so when a request is answered with 401
            reason = "the coordinator does not let this node in any more"
        else:
            reason = self._heard or reason
        if name == SUPERNODE:
            lost_port = self._heard == LOST_PORT
            if lost_port:
                self._port = _free_port()
            # It may keep a question for the one that ended, and would take none from its successor.
            if (lost_port or was_connected) and EXECUTOR in self._children:
                self._children.pop(EXECUTOR).end(SECONDS_TO_END[EXECUTOR])
        self._failures[name] = 0 if seconds > SECONDS_OF_HEALTH else self._failures[name] + 1
        pause = min(LONGEST_PAUSE, 2.0 ** (self._failures[name] - 1))
        self._due[name] = time.monotonic() + pause
        self._tell(f"the {name} ended ({printable(reason)[:400]}); starting it again")
        self._note("stopped", reason)

    def _tell(self, line: str) -> None:
        if line != self._said:
            self._announce(line)
        self._said = line

    def _note(
        self, supernode: Literal["starting", "connected", "away", "stopped"], reason: str = ""
    ) -> None:
        if self._state is not None and self._state.supernode == supernode:
            return
        # Attempts that follow a failure are no news until one succeeds.
        if supernode == "starting" and self._state is not None:
            reason = self._state.reason
        self._state = Running(os.getpid(), supernode, int(time.time()), printable(reason)[:500])
        state = self._state
        self._keep(lambda: self._membership.note(state))

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            write()
        except ResourceExhausted as error:  # a full disk is no reason to end
            self._tell(error.message)


def run_membership(
    folder: Path, settings: FederationSettings, announce: Callable[[str], None] = say
) -> None:
    """Run SuperNode and executor in the foreground; returns after SIGTERM, SIGINT or SIGHUP.

    For the main thread only. At its return both processes are gone, in less than ten seconds; they
    end too, by themselves, if this process is killed.

    Args:
        folder: The membership, admitted by a coordinator.
        settings: Which chain and registry the node trusts; handed on to the executor.
        announce: Is told, in a line for people, what changes.

    Raises:
        ConfigurationError: If no coordinator admitted this node, or the membership runs already.
        KeyOrSignatureError: If the SuperNode's key is missing its privacy.
        ResourceExhausted: If the folder cannot be written.
    """
    membership = Membership.open(folder)
    joined = membership.joined()
    if joined is None or joined.state != "admitted" or not membership.ca.exists():
        raise ConfigurationError(
            f"no coordinator admitted the membership in {membership.folder} yet",
            hint="genkd-node join COORDINATOR --ca-fingerprint HEX --run NAME",
        )
    membership.make_secrets()
    with membership.locked(), _signals() as (wake, stopped):
        _Keeper(membership, joined, settings, announce).run(wake, stopped)


@contextmanager
def _signals() -> Iterator[tuple[int, Callable[[], bool]]]:
    """A descriptor that every signal makes readable, and whether one asked to stop."""
    asked: list[int] = []
    stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    wake, signalled = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(signalled, False)
    before = {
        **{n: signal.signal(n, lambda number, _: asked.append(number)) for n in stopping},
        # Only to be woken when a process ends.
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
    }
    wakeup_before = signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    try:
        yield wake, lambda: bool(asked)
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(signalled)


def _drain(descriptor: int) -> None:
    try:
        os.read(descriptor, 4096)
    except BlockingIOError:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _settings_variables(settings: FederationSettings) -> dict[str, str]:
    """What the executor reads its settings from: what was said to this process, flags and all.

    Defaults are left out, for the coordinator's card comes before them.
    """
    said = settings.model_fields_set & set(FederationSettings.model_fields)
    values = {name: getattr(settings, name) for name in said}
    return {f"{PREFIX}{n.upper()}": str(value) for n, value in values.items() if value is not None}

"""A process that is kept: started, listened to, ended in order, and that outlives nobody.

    child = ChildProcess("executor", [sys.executable, "-m", ...], environment, log)
    for line in child.lines(): ...              # when its `output` is readable
    child.end(seconds=3)

Whoever is kept so calls `end_with_parent()` first. Its standard input is a pipe whose other end
only its keeper holds: when that ends, however the keeper came to its end, the child ends. This
works alike on Linux and macOS, and for a keeper with threads, where Linux's own parent-death signal
would come when the *thread* ended that started the child.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from genkd.durable import unwritable

MAX_LOG_BYTES = 1 << 20
MAX_LINE_BYTES = 4096
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
NUMBERS = re.compile(r"\d+")
# A child that was told to end, or lost its keeper, has so long before it is killed.
SECONDS_TO_END = 7.0


class BoundedLog:
    """A log of at most two mebibytes: a file and the one before it.

    A line that differs from the last one only in its numbers is counted, not written: a SuperNode
    that cannot reach its SuperLink says so several times a minute, for days. A line that cannot be
    written is lost: a full disk is no reason to end what is logged.

    Args:
        path: The file.

    Attributes:
        fault: Why lines are lost, in one line; empty while none are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault = ""
        self._last = ""
        self._repeats = 0

    def write(self, line: str) -> None:
        """Add a line."""
        shape = NUMBERS.sub("0", line)
        if shape == self._last:
            self._repeats += 1
            return
        self.flush()
        self._last = shape
        self._append(line)

    def flush(self) -> None:
        """Write down how often the last line was repeated."""
        if self._repeats:
            self._append(f"({self._repeats} more like it)")
        self._repeats = 0

    def _append(self, line: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            with self.path.open("ab") as file:
                file.write(f"{now} {line}\n".encode())
                full = file.tell() >= MAX_LOG_BYTES
            if full:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            self.fault = ""
        except OSError as error:
            self.fault = unwritable(self.path, error).message


class ChildProcess:
    """A process that was started, and what it says.

    Args:
        name: What people call it.
        command: The program and its arguments.
        environment: All of its environment.
        log: Where its output goes.

    Attributes:
        started: When, on the monotonic clock.
        silent: Whether its output has ended: `output` is readable for ever then.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        log: BoundedLog,
    ) -> None:
        self.name = name
        self.log = log
        self.started = time.monotonic()
        self.silent = False
        self._rest = b""
        self._process = subprocess.Popen(  # noqa: S603 (our own programs)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            # Ctrl-C is for the keeper, which then ends its children in order.
            start_new_session=True,
        )
        os.set_blocking(self.output, False)

    @property
    def output(self) -> int:
        """The descriptor that becomes readable when it says something."""
        if self._process.stdout is None:
            raise ValueError("its output is not piped")
        return self._process.stdout.fileno()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_status(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def lines(self) -> Iterator[str]:
        """What it said since the last call, line by line; it is logged too."""
        while True:
            try:
                chunk = os.read(self.output, 65536)
            except BlockingIOError:
                return
            self._rest += chunk
            *whole, self._rest = self._rest.split(b"\n")
            if not chunk or len(self._rest) > MAX_LINE_BYTES:
                whole, self._rest = [*whole, self._rest], b""
            for line in whole:
                text = COLOURS.sub("", line[:MAX_LINE_BYTES].decode(errors="replace")).strip()
                if text:
                    self.log.write(text)
                    yield text
            if not chunk:
                self.silent = True
                return

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def end(self, seconds: float) -> None:
        """Ask it to end, wait so long at most, and kill what is left of it.

        Args:
            seconds: How long it has.
        """
        self.ask_to_end()
        deadline = time.monotonic() + seconds
        while self.exit_status() is None and time.monotonic() < deadline:
            for _ in self.lines():  # a full pipe would keep it from ending
                pass
            time.sleep(0.02)
        self._signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Take its last words, and let go of it. It has ended, or is ended now."""
        if self.exit_status() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()
        for _ in self.lines():
            pass
        self.log.flush()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _signal(self, number: signal.Signals) -> None:
        """To the process, and to any child it made: it leads a group of its own."""
        if self.exit_status() is None:  # so the group is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS, of zombies
                os.killpg(self._process.pid, number)


def end_with_parent() -> None:
    """In the child, before anything else: end when the keeper does.

    First in order, as by SIGTERM; by SIGKILL when that has no effect.
    """

    def watch() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_TO_END)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()

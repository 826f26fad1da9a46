"""Where a process can be killed: the calls that leave a trace, in a child that dies at one of them.

    while killed_at(step, lambda: publish(...), [*FILES_PUT_IN_PLACE, TRANSACTIONS]):
        step += 1

The child is forked, counts the calls of the thread it begins with, and sends itself SIGKILL: no
`finally` runs, nothing is flushed.
"""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from contracts.json_rpc import JsonRpc

Tick = Callable[[], None]


class KillPoint(Protocol):
    """Something that leaves a trace."""

    def arm(self, before: Tick, after: Tick) -> None:
        """From now on, in this process, call `before` and `after` around it."""


@dataclass(frozen=True)
class Call:
    """A function of a module, or a method of a class.

    Attributes:
        owner: The module or the class.
        name: Its name there.
        counts: Whether a call with these positional arguments counts.
    """

    owner: Any
    name: str
    counts: Callable[..., bool] = lambda *_: True

    def arm(self, before: Tick, after: Tick) -> None:
        call = getattr(self.owner, self.name)

        @functools.wraps(call)
        def counted(*arguments: Any, **named: Any) -> Any:
            if not self.counts(*arguments):
                return call(*arguments, **named)
            before()
            result = call(*arguments, **named)
            after()
            return result

        setattr(self.owner, self.name, counted)


class SqlWrites:
    """Each statement of SQLite that is no question, on connections opened from then on."""

    def arm(self, before: Tick, after: Tick) -> None:
        class Counting(sqlite3.Connection):
            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                if statement.startswith(("SELECT", "PRAGMA")):
                    return super().execute(statement, *values)
                before()
                cursor = super().execute(statement, *values)
                after()
                return cursor

        sqlite3.connect = functools.partial(sqlite3.connect, factory=Counting)  # type: ignore[assignment]


FILES_PUT_IN_PLACE = (Call(os, "replace"), Call(os, "rename"))
FOLDERS_CHANGED = tuple(Call(os, name) for name in ("mkdir", "rmdir", "unlink"))
TRANSACTIONS = Call(JsonRpc, "ask", lambda _, method, *__: method == "eth_sendRawTransaction")


def killed_at(
    step: int, work: Callable[[], object], points: Sequence[KillPoint], *, after: bool = False
) -> bool:
    """Do the work in a child that is killed at a step; whether it came that far.

    Args:
        step: How many steps it may make before, from 0.
        work: Must not fail, unless it is killed.
        points: What counts as a step.
        after: Whether each point is two steps: just before, and just after.
    """
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            tick = _countdown(step)
            for point in points:
                point.arm(tick, tick if after else lambda: None)
            work()
            os._exit(0)
        except BaseException as error:  # told by the exit status, never raised into the parent
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _countdown(steps: int) -> Tick:
    """Kills this process at the call after so many of this thread."""
    thread, left = threading.current_thread(), steps

    def tick() -> None:
        nonlocal left
        if threading.current_thread() is not thread:
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    return tick

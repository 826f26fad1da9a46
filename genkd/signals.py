"""What a stop signal means while work goes on that can be resumed.

    with stop_signals() as check:
        distill(..., on_progress=lambda progress: check())
    # SIGTERM: Stopped, exit code 75. Ctrl-C: Interrupted, exit code 130.

Work that calls `check` between its steps is stopped there, where it can save all of its state. A
second signal, or a first one before the work has begun to check, stops at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from genkd.errors import GenKDError, Interrupted, Stopped

RESUME_HINT = "the checkpoint is kept: repeat the same command to go on"


class _StopSignals:
    """Handles SIGTERM and SIGINT, and remembers whether the work asks for them itself."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._arrived: signal.Signals | None = None
        self._work_checks = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        at_once = self._arrived is not None or not self._work_checks
        self._arrived = signal.Signals(number)
        if at_once:
            raise self.error()
        self._announce("stopping after this step; once more stops at once")

    def check(self) -> None:
        """Raise what has arrived."""
        self._work_checks = True
        if self._arrived is not None:
            raise self.error()

    def end(self) -> None:
        """As `check`, where no further step follows."""
        self._work_checks = False
        if self._arrived is not None:
            raise self.error()

    def error(self) -> GenKDError:
        if self._arrived is signal.SIGINT:
            return Interrupted("interrupted", hint=RESUME_HINT)
        return Stopped("stopped by SIGTERM", hint=RESUME_HINT)


@contextmanager
def stop_signals(announce: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """SIGTERM raises `Stopped` in the block, Ctrl-C `Interrupted`; for the main thread only.

    Args:
        announce: Is told, in a line for people, that a stop is under way.

    Yields:
        The function to call between steps; it raises what has arrived.
    """
    signals = _StopSignals(announce)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, signals.handle)
    try:
        yield signals.check
        signals.end()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

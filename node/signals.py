"""What a stop signal means while work goes on that can be resumed.

with stop_signals_raise() as check:
    distill(..., on_progress=lambda progress: check())
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from genkd.errors import Interrupted, Stopped

RESUME_HINT = "the checkpoint is kept: repeat the same command to go on"


@contextmanager
def stop_signals_raise() -> Iterator[Callable[[], None]]:
    """SIGTERM raises `Stopped` in the block, Ctrl-C `Interrupted`; to be used in the main thread.

    Yields:
        A function that raises `Stopped` if SIGTERM has come: called now and then, it stops the work
        even where some library swallowed the first exception.
    """
    arrived = False

    def check() -> None:
        if arrived:
            raise Stopped("stopped by SIGTERM", hint=RESUME_HINT)

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        check()

    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield check
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted", hint=RESUME_HINT) from error
    finally:
        signal.signal(signal.SIGTERM, before)

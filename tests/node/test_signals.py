"""SIGTERM and Ctrl-C stop resumable work with their own exit codes."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from genkd.errors import Interrupted, Stopped
from node.signals import stop_signals_raise


def swallow_sigterm() -> None:
    """What a library does that takes every exception for one of its own."""
    with contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_is_stopped_with_75_and_says_how_to_go_on() -> None:
    with pytest.raises(Stopped) as caught, stop_signals_raise():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 75
    assert "repeat the same command" in caught.value.hint


def test_ctrl_c_is_interrupted_with_130() -> None:
    with pytest.raises(Interrupted) as caught, stop_signals_raise():
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
    assert "checkpoint is kept" in caught.value.hint


def test_a_library_that_swallows_the_stop_does_not_undo_it() -> None:
    def work() -> None:
        with stop_signals_raise() as check:
            swallow_sigterm()
            check()

    with pytest.raises(Stopped):
        work()


def test_work_that_nobody_stopped_goes_on() -> None:
    with stop_signals_raise() as check:
        check()


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals_raise():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before

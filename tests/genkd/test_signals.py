"""SIGTERM and Ctrl-C stop resumable work between two steps, with their own exit codes."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from genkd.errors import GenKDError, Interrupted, Stopped
from genkd.signals import stop_signals

BOTH = pytest.mark.parametrize(
    ("number", "kind", "exit_code"),
    [(signal.SIGTERM, Stopped, 75), (signal.SIGINT, Interrupted, 130)],
    ids=["SIGTERM", "Ctrl-C"],
)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def ignore(line: str) -> None:
    """An announcement that nobody reads."""


@BOTH
def test_work_is_stopped_where_it_checks(
    number: signal.Signals, kind: type[GenKDError], exit_code: int
) -> None:
    done: list[str] = []
    said: list[str] = []

    def work() -> None:
        with stop_signals(said.append) as check:
            check()
            send(number)
            done.append("rest of the step")
            check()
            done.append("next step")

    with pytest.raises(kind) as caught:
        work()
    assert caught.value.exit_code == exit_code
    assert "repeat the same command" in caught.value.hint
    assert done == ["rest of the step"]
    assert said == ["stopping after this step; once more stops at once"]


@BOTH
def test_a_second_signal_stops_at_once(
    number: signal.Signals, kind: type[GenKDError], exit_code: int
) -> None:
    done: list[str] = []

    def work() -> None:
        with stop_signals(ignore) as check:
            check()
            send(signal.SIGTERM)
            done.append("after the first")
            send(number)
            done.append("after the second")

    with pytest.raises(kind):
        work()
    assert done == ["after the first"]


@BOTH
def test_work_that_has_not_begun_to_check_is_stopped_at_once(
    number: signal.Signals, kind: type[GenKDError], exit_code: int
) -> None:
    done: list[str] = []

    def load() -> None:
        with stop_signals(ignore):
            send(number)
            done.append("loaded")

    with pytest.raises(kind):
        load()
    assert done == []


def test_a_library_that_swallows_the_stop_does_not_undo_it() -> None:
    def work() -> None:
        with stop_signals(ignore) as check:
            with contextlib.suppress(Exception):
                send(signal.SIGTERM)
            check()

    with pytest.raises(Stopped):
        work()


def test_a_stop_during_the_last_step_is_not_forgotten() -> None:
    def work() -> None:
        with stop_signals(ignore) as check:
            check()
            send(signal.SIGTERM)

    with pytest.raises(Stopped):
        work()


def test_work_that_nobody_stopped_goes_on() -> None:
    with stop_signals(ignore) as check:
        check()
        check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_afterwards_signals_mean_what_they_meant_before(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signals(ignore):
        assert signal.getsignal(number) != before
    assert signal.getsignal(number) == before
    with pytest.raises(ValueError, match="of the work"), stop_signals(ignore):
        raise ValueError("of the work")
    assert signal.getsignal(number) == before

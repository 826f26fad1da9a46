"""A node that its coordinator removed ends by itself; one that cannot reach it does not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.enrolment import JoinAnswer
from genkd.errors import CoordinatorUnreachable, GenKDError, RefusedByPolicy, Stopped
from node import removal_watch, supernode
from node.membership import Joined, Membership, Running
from node.removal_watch import RemovalWatch

TURNED_AWAY = "the coordinator does not know its key, or still holds it for present"
REMOVED = JoinAnswer("refused", "removed by the coordinator")
AWAY = CoordinatorUnreachable("it does not answer", hint="wait")


@pytest.fixture
def membership(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Membership]:
    for name in ("SECONDS_TO_START", "SECONDS_BETWEEN_LOOKS", "SECONDS_BETWEEN_QUESTIONS"):
        monkeypatch.setattr(removal_watch, name, 0.01)
    found = Membership.open(tmp_path / "membership")
    found.remember(Joined("a.example:1", "5f" * 32, "0x" + "1" * 40, ("spring",), "admitted"))
    handler = signal.getsignal(signal.SIGHUP)
    yield found
    assert signal.getsignal(signal.SIGHUP) == handler


def run(
    membership: Membership,
    state: str,
    reason: str,
    answers: list[JoinAnswer | GenKDError],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float = 20.0,
) -> tuple[RemovalWatch, int, bool]:
    """Run a membership whose SuperNode is in a state, until it is ended or the time is up.

    Returns:
        The watch, how often the coordinator was asked, and whether it ended before its time.
    """
    asked: list[Any] = []

    def ask_state(*arguments: Any) -> JoinAnswer:
        asked.append(arguments)
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, GenKDError):
            raise answer
        return answer

    monkeypatch.setattr(removal_watch, "ask_state", ask_state)

    def keep(wake: int, stop: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while not stop() and time.monotonic() < until:
            time.sleep(0.005)

    joined = membership.joined()
    assert joined is not None
    watch = RemovalWatch(membership, joined)
    with watch, membership.locked(), supernode._signals() as (wake, stopped):
        membership.note(Running(os.getpid(), state, 1, reason))  # type: ignore[arg-type]
        keep(wake, stopped)
        ended = stopped()
    return watch, len(asked), ended


def test_a_removed_node_ends_and_says_what_to_do_next(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, asked, ended = run(
        membership, "stopped", TURNED_AWAY, [AWAY, AWAY, REMOVED], monkeypatch
    )
    assert (asked, ended) == (3, True)
    with pytest.raises(RefusedByPolicy, match="removed by the coordinator") as caught:
        watch.require_member()
    assert "genkd-node init --keys" in caught.value.hint
    joined = membership.joined()
    assert joined is not None
    assert joined.state == "refused"  # so that the next join asks first


@pytest.mark.parametrize(
    ("state", "reason", "answer", "asks"),
    [
        ("stopped", TURNED_AWAY, AWAY, True),
        ("stopped", TURNED_AWAY, JoinAnswer("admitted"), True),
        ("stopped", TURNED_AWAY, JoinAnswer("pending", "another key"), True),
        ("stopped", TURNED_AWAY, Stopped("it has no request", hint="join again"), True),
        ("away", "the coordinator does not answer", REMOVED, False),
        ("connected", "", REMOVED, False),
        ("starting", "", REMOVED, False),
    ],
    ids=["away", "admitted", "pending", "unknown", "not reached", "connected", "first start"],
)
def test_whoever_is_not_refused_goes_on(
    state: str,
    reason: str,
    answer: JoinAnswer | GenKDError,
    asks: bool,
    membership: Membership,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watch, asked, ended = run(membership, state, reason, [answer], monkeypatch, seconds=0.5)
    assert not ended
    assert (asked > 0) == asks
    watch.require_member()
    assert len(capsys.readouterr().err.splitlines()) <= 1  # said once, however often it is asked
    joined = membership.joined()
    assert joined is not None
    assert joined.state == "admitted"

"""What was answered is remembered, bounded, and of two that ask at once one is answered."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from genkd.errors import ConfigurationError, ResourceExhausted
from node import answers
from node.answers import ANSWERS_FILE, Answer, AnswerLog

GIVEN = Answer("collect", b"r" * 32, 1, b"i" * 32, 1000, "given out")
REFUSED = Answer("collect", b"r" * 32, 1, b"", 0, "no finished release")


@pytest.fixture
def log(tmp_path: Path) -> AnswerLog:
    return AnswerLog(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(answers.time, "time", lambda: now[0])
    return now


def test_nothing_was_answered_before_the_first(log: AnswerLog) -> None:
    assert log.recent(5) == []
    assert not log.path.exists()  # asking makes no file


def test_a_release_goes_out_once_in_the_time_between(log: AnswerLog, clock: list[float]) -> None:
    assert log.reserve(GIVEN, seconds=10) == 0
    assert log.reserve(GIVEN, seconds=10) == 10
    clock[0] += 9
    assert log.reserve(replace(GIVEN, round=2), seconds=10) == 1
    clock[0] += 1
    assert log.reserve(GIVEN, seconds=10) == 0
    assert [(one.at, one.outcome) for one in log.recent(5)] == [
        (1010, "given out"),
        (1000, "given out"),
    ]


def test_answers_without_a_release_do_not_count(log: AnswerLog, clock: list[float]) -> None:
    log.note(REFUSED)
    assert log.reserve(GIVEN, seconds=10) == 0


def test_a_clock_set_back_does_not_silence_the_node(log: AnswerLog, clock: list[float]) -> None:
    assert log.reserve(GIVEN, seconds=10) == 0
    clock[0] -= 500
    assert log.reserve(GIVEN, seconds=10) == 0


def test_the_same_answer_again_is_one_entry(log: AnswerLog, clock: list[float]) -> None:
    for _ in range(3):
        log.note(REFUSED)
        clock[0] += 1
    log.note(replace(REFUSED, round=2))
    log.note(REFUSED)
    found = [(one.round, one.times, one.at) for one in log.recent(9)]
    assert found == [(1, 1, 1003), (2, 1, 1003), (1, 3, 1002)]


def test_the_log_is_bounded_and_what_counts_is_not_pushed_out(
    log: AnswerLog, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "KEPT", 5)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    assert log.reserve(GIVEN, seconds=100) == 0
    for number in range(20):
        log.note(replace(REFUSED, round=number))
    assert len(log.recent(100)) == 6
    assert log.reserve(GIVEN, seconds=100) == 100


def _reserve(folder: Path) -> int:
    return AnswerLog(folder).reserve(GIVEN, seconds=1000)


def test_of_many_processes_one_may(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        waits = pool.map(_reserve, [tmp_path] * 12)
    assert sorted(waits)[0] == 0
    assert all(990 <= wait <= 1000 for wait in sorted(waits)[1:])


def test_a_damaged_log_is_told_and_nothing_goes_out(log: AnswerLog) -> None:
    log.path.write_bytes(b"no database" * 100)
    for ask in (lambda: log.reserve(GIVEN, seconds=0), lambda: log.recent(1)):
        with pytest.raises(ConfigurationError, match="damaged"):
            ask()


def test_a_log_that_cannot_be_written_lets_nothing_out(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted):
        AnswerLog(tmp_path / "nowhere").reserve(GIVEN, seconds=0)
    (tmp_path / ANSWERS_FILE).mkdir()
    with pytest.raises(ResourceExhausted):
        AnswerLog(tmp_path).reserve(GIVEN, seconds=0)


def test_who_waits_for_another_process_is_told_in_time(
    log: AnswerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 0.05)
    with log._writing():
        before = time.monotonic()
        with pytest.raises(ResourceExhausted, match="locked"):
            log.note(REFUSED)
        assert time.monotonic() - before < 5

"""Progress is a bar on a terminal and a plain line now and then elsewhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import pytest

from node import progress
from node.progress import duration, progress_display


@dataclass(frozen=True)
class Progress:
    fraction: float
    phase: str = "student"
    round: int = 3
    seconds: float = 61.0
    eta_seconds: float | None = 125.0
    figures: dict[str, float] = field(default_factory=lambda: {"agreement": 0.91234})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list whose only element is the time."""
    now = [100.0]
    monkeypatch.setattr("node.progress.time.monotonic", lambda: now[0])
    return now


def test_a_line_says_how_far_how_long_and_what(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_display() as show:
        show(Progress(0.25))
    assert capsys.readouterr().err == (
        " 25%  round 3  student  1m01s spent  2m05s left  agreement 0.912\n"
    )


def test_lines_come_every_few_seconds_and_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_display() as show:
        for step in range(1000):
            clock[0] = 100.0 + step / 100  # ten seconds in all
            show(Progress(step / 1000))
        show(Progress(1.0))
        show(Progress(1.0))
    lines = capsys.readouterr().err.splitlines()
    assert [line[:4] for line in lines] == ["  0%", " 50%", "100%"]


def test_an_unknown_end_is_not_made_up(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_display() as show:
        show(Progress(0.0, eta_seconds=None, figures={}))
    assert "left" not in capsys.readouterr().err


def test_a_terminal_gets_a_bar_with_the_same_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress_display() as show:
        show(Progress(0.5, phase="[bold]MLE"))
    err = capsys.readouterr().err
    assert "50%" in err
    assert "2m05s left" in err
    assert "agreement 0.912" in err
    assert "[bold]MLE" in err  # shown, not obeyed


def test_importing_progress_does_not_import_the_bar() -> None:
    assert "rich" not in vars(progress)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (59.4, "59s"),
        (60, "1m00s"),
        (3599.6, "1h00m"),
        (7325, "2h02m"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text

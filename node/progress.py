"""How far a run is: a bar with key figures on a terminal, a plain line every few seconds elsewhere.

with progress_display() as show:
    distill(..., on_progress=show)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from genkd.console import say

if TYPE_CHECKING:
    from genkd.distillation import Progress

LINE_EVERY_SECONDS = 5.0
FIGURES_SHOWN = 4


@contextmanager
def progress_display() -> Iterator[Callable[[Progress], None]]:
    """A function that shows each `Progress` it is called with, on stderr."""
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.fields[phase]}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[eta]}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0, phase="starting", eta="", figures="")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                completed=progress.fraction,
                phase=f"round {progress.round} {progress.phase}",
                eta=_eta(progress),
                figures=_figures(progress),
            )

        yield show


def _lines() -> Callable[[Progress], None]:
    last = -LINE_EVERY_SECONDS
    ended = False

    def show(progress: Progress) -> None:
        nonlocal last, ended
        now = time.monotonic()
        ends = progress.fraction >= 1.0 and not ended
        if now - last < LINE_EVERY_SECONDS and not ends:
            return
        last, ended = now, ended or ends
        parts = (
            f"{progress.fraction:4.0%}",
            f"round {progress.round}",
            progress.phase,
            f"{duration(progress.seconds)} spent",
            _eta(progress),
            _figures(progress),
        )
        say("  ".join(part for part in parts if part))

    return show


def _eta(progress: Progress) -> str:
    return "" if progress.eta_seconds is None else f"{duration(progress.eta_seconds)} left"


def _figures(progress: Progress) -> str:
    shown = list(progress.figures.items())[:FIGURES_SHOWN]
    return "  ".join(f"{name} {value:.3g}" for name, value in shown)


def duration(seconds: float) -> str:
    """`75.0` as `1m15s`, `0.42` as `0.4s`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"

"""Curves as plain SVG geometry: no library, no script, and the page's own colours.

    charts_of(rounds)["losses"][0].path     # "M44.0 12.0L46.1 13.5..."

A template draws what is here. The coordinates are those of a box of WIDTH x HEIGHT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genkd.json_values import flat

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 310, 8, 128
# Each bucket of a long curve keeps its lowest and its highest point, so no spike is lost.
BUCKETS = 160
# Positive values over more than three decades are drawn on a logarithmic scale.
LOGARITHMIC_RATIO = 1e3
TINY = 1e-300  # below it the powers of ten run out
# A run has three groups of a dozen charts; a forged log has any number.
MAX_GROUPS, MAX_CHARTS = 8, 30
MAX_NAME = 80
NOT_A_CURVE = {"event", "time", "round", "seconds", "phase_seconds"}

Point = tuple[float, float]
Reading = tuple[float, float | None]  # a round, and what it told: None if that cannot be drawn


@dataclass(frozen=True)
class Chart:
    """One curve, ready to be drawn.

    Attributes:
        name: What is drawn.
        first: The first finite value.
        last: The last finite value.
        path: The curve, as the `d` of an SVG path.
        end: Where it ends, x and y.
        y_ticks: y and label of each line of the grid.
        x_ticks: x and label below.
        marks: x of each place where the run was resumed, or the student went on alone.
        logarithmic: Whether the vertical scale is.
        missing: How many values were not finite, or not there, once the curve had begun.
    """

    name: str
    first: float
    last: float
    path: str
    end: Point
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    marks: tuple[float, ...]
    logarithmic: bool
    missing: int


def charts_of(
    events: Sequence[Mapping[str, Any]], marked_at: Sequence[float] = ()
) -> dict[str, list[Chart]]:
    """A chart for every number that the events of the rounds tell, by group.

    Args:
        events: The rounds, in order: `{"round": 0, "losses": {"kd": 0.3}}`.
        marked_at: The rounds with which the run was resumed, or the student went on alone.

    Returns:
        Charts by group ("losses"), in the order in which their names first appear. Numbers
        outside a group are under "other".
    """
    curves: dict[str, dict[str, list[Reading]]] = {}
    rounds = [_round_of(event, index) for index, event in enumerate(events)]
    for event, at in zip(events, rounds, strict=True):
        for key, value in event.items():
            if key in NOT_A_CURVE:
                continue
            group, values = (key, value) if isinstance(value, Mapping) else ("other", {key: value})
            for name, number in flat(values):
                if number is None or isinstance(number, int | float):
                    _curve(curves, group, name).append((at, _finite(number)))
    span = (min(rounds), max(rounds)) if rounds else (0.0, 0.0)
    drawn = {
        group: [c for n, points in named.items() if (c := _chart(n, points, span, marked_at))]
        for group, named in curves.items()
    }
    return {group: charts for group, charts in drawn.items() if charts}


def _curve(curves: dict[str, dict[str, list[Reading]]], group: str, name: str) -> list[Reading]:
    """The curve of that name, begun if there is room for it; else a list that is thrown away."""
    if group not in curves and len(curves) >= MAX_GROUPS:
        return []
    named = curves.setdefault(group, {})
    if name not in named and len(named) >= MAX_CHARTS:
        return []
    return named.setdefault(name, [])


def _round_of(event: Mapping[str, Any], index: int) -> float:
    at = _finite(event.get("round"))
    return float(index) if at is None else at


def _finite(value: object) -> float | None:
    """As a float; None for what is not a number that can be drawn."""
    if not isinstance(value, int | float) or not abs(value) < 1e300:
        return None
    return float(value)


def _chart(
    name: str,
    points: Sequence[Reading],
    span: tuple[float, float],
    marked_at: Sequence[float],
) -> Chart | None:
    values = [value for _, value in points if value is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    logarithmic = low > TINY and high / low > LOGARITHMIC_RATIO
    ticks = _decades(low, high) if logarithmic else _round_numbers(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x_of(at: float) -> float:
        part = (at - span[0]) / (span[1] - span[0]) if span[1] > span[0] else 0.5
        return round(LEFT + part * (RIGHT - LEFT), 1)

    def y_of(value: float) -> float:
        scale = math.log if logarithmic else float
        part = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return round(BOTTOM - part * (BOTTOM - TOP), 1)

    drawn = [(x_of(at), None if v is None else y_of(v)) for at, v in points]
    *_, end = ((x, y) for x, y in drawn if y is not None)
    return Chart(
        name=name[:MAX_NAME],
        first=values[0],
        last=values[-1],
        path=_path(_thinned(drawn)),
        end=end,
        y_ticks=tuple((y_of(tick), f"{tick:.6g}") for tick in ticks),
        x_ticks=tuple((x_of(at), f"{at:.0f}") for at in dict.fromkeys(span)),
        marks=tuple(x_of(at) for at in marked_at if span[0] < at <= span[1]),
        logarithmic=logarithmic,
        missing=len(points) - len(values),
    )


def _round_numbers(low: float, high: float, about: int = 4) -> list[float]:
    """Two to six multiples of 1, 2 or 5 times a power of ten that enclose [low, high]."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(high) / 2 or 1.0  # a constant is drawn in the middle
        low, high = low - margin, high + margin
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """At most six powers of ten that enclose [low, high]."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = math.ceil((last - first) / 5)
    return [10.0**exponent for exponent in range(first, last + step, step)]


def _thinned(points: Sequence[Reading]) -> list[Reading]:
    """The points, or of a long curve the lowest and the highest of each bucket, in order."""
    if len(points) <= 2 * BUCKETS:
        return list(points)
    kept: list[Reading] = []
    size = math.ceil(len(points) / BUCKETS)
    for start in range(0, len(points), size):
        bucket = [p for p in points[start : start + size] if p[1] is not None]
        if not bucket:
            kept.append((points[start][0], None))
            continue
        lowest = max(bucket, key=lambda p: p[1] or 0)  # y grows downwards
        highest = min(bucket, key=lambda p: p[1] or 0)
        kept += dict.fromkeys(sorted((lowest, highest)))
    return kept


def _path(points: Sequence[Reading]) -> str:
    """A line through the points, with a gap where there is none."""
    steps, pen_down = [], False
    for x, y in points:
        if y is None:
            pen_down = False
        else:
            # "h0" makes a dot of a lone point, with round line ends.
            steps.append(f"L{x} {y}" if pen_down else f"M{x} {y}h0")
            pen_down = True
    return "".join(steps)

"""Plain SVG plots of a study: points with intervals, one line a method, no library.

write_plot(path, "accuracy against time", {"genkd": [(600, 0.81, 0.80, 0.82)]}, x="core-seconds")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from genkd.durable import atomic_write

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 520, 40, 360  # the legend stands to the right
# Okabe and Ito 2008: told apart by colour-blind people too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
Point = tuple[float, float, float, float]  # x, y, and the ends of y's interval


def frame(title: str, x: str, y: str) -> list[str]:
    """The beginning of an SVG picture: its ground, its title and the names of its axes."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 14}" text-anchor="middle">'
        f"{escape(x)}</text>",
        f'<text x="16" y="{(TOP + BOTTOM) // 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(TOP + BOTTOM) // 2})">{escape(y)}</text>',
    ]


def write_plot(
    path: Path,
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x: str,
    y: str = "top-1, %",
    notes: Sequence[str] = (),
) -> None:
    """Draw series over a logarithmic x.

    Args:
        path: The SVG file.
        title: Above it.
        series: Points of each line by its name; x above 0.
        x: What the horizontal axis is.
        y: What the vertical axis is.
        notes: Lines below the legend.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return
    x_low, x_high = min(p[0] for p in points) / 1.2, max(p[0] for p in points) * 1.2
    step = _step(min(p[2] for p in points), max(p[3] for p in points))
    y_low = math.floor(min(p[2] for p in points) / step) * step
    y_high = max(y_low + step, math.ceil(max(p[3] for p in points) / step) * step)

    def place(at: float, value: float) -> tuple[float, float]:
        part = math.log(at / x_low) / math.log(x_high / x_low)
        height = (value - y_low) / (y_high - y_low)
        return round(LEFT + part * (RIGHT - LEFT), 1), round(BOTTOM - height * (BOTTOM - TOP), 1)

    drawn = frame(title, f"{x} (logarithmic)", y)
    for number in range(round((y_high - y_low) / step) + 1):
        value = y_low + number * step
        _, at = place(x_low, value)
        drawn.append(f'<path d="M{LEFT} {at}H{RIGHT}" stroke="#ddd"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{value:.6g}</text>')
    for at in _round_numbers(x_low, x_high):
        across, _ = place(at, y_low)
        drawn.append(f'<path d="M{across} {BOTTOM}v4" stroke="#888"/>')
        drawn.append(f'<text x="{across}" y="{BOTTOM + 18}" text-anchor="middle">{at:,.6g}</text>')
    for index, (name, line) in enumerate(series.items()):
        drawn += _line(name, [(p, place) for p in sorted(line)], index)
    for index, note in enumerate(notes):
        at = TOP + 34 + 20 * len(series) + 16 * index
        drawn.append(f'<text x="{RIGHT + 16}" y="{at}" fill="#555">{escape(note)}</text>')
    atomic_write(path, ("\n".join([*drawn, "</svg>"]) + "\n").encode())


def _line(name: str, placed: Sequence[tuple[Point, object]], index: int) -> list[str]:
    colour = COLOURS[index % len(COLOURS)]
    dashes = "" if index < len(COLOURS) else ' stroke-dasharray="5 3"'
    drawn, ends = [], []
    for (at, value, low, high), place in placed:
        across, up = place(at, value)  # type: ignore[operator]
        (_, bottom), (_, top) = place(at, low), place(at, high)  # type: ignore[operator]
        ends.append(f"{across} {up}")
        drawn.append(f'<path d="M{across} {bottom}V{top}" stroke="{colour}"/>')
        drawn.append(f'<circle cx="{across}" cy="{up}" r="3.5" fill="{colour}"/>')
    path = "M" + "L".join(ends)
    drawn.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>')
    y = TOP + 10 + 20 * index
    drawn.append(f'<path d="M{RIGHT + 16} {y}h20" stroke="{colour}" stroke-width="2"{dashes}/>')
    drawn.append(f'<text x="{RIGHT + 42}" y="{y + 4}">{escape(name)}</text>')
    return drawn


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two; of many decades the powers only.

    A span that holds hardly any of them has even steps.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [n * 10.0**power for power in powers for n in steps if low <= n * 10.0**power <= high]
    if len(found) > 1:
        return found
    step = _step(low, high)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _step(low: float, high: float) -> float:
    """A multiple of 1, 2 or 5 times a power of ten: three to seven of them cover the span."""
    raw = max((high - low) / 5, 1e-9 * max(abs(high), 1), 1e-12)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= raw * (1 - 1e-9))

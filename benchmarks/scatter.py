"""Plain SVG scatter plots: one dot a run, one colour a method, no library.

write_scatter(path, "FID against accuracy", {"genkd": [(12.1, 78.0)]}, x="FID")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from plots import BOTTOM, COLOURS, LEFT, RIGHT, TOP, frame

from genkd.durable import atomic_write

TICKS = 5


def write_scatter(
    path: Path,
    title: str,
    groups: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str = "top-1, %",
) -> None:
    """Draw dots over two linear axes.

    Args:
        path: The SVG file.
        title: Above it.
        groups: Dots (x, y) by what the legend calls them; those that are not finite are left out.
        x: What the horizontal axis is.
        y: What the vertical axis is.
    """
    finite = {
        name: [dot for dot in dots if all(map(math.isfinite, dot))] for name, dots in groups.items()
    }
    every = [dot for dots in finite.values() for dot in dots]
    if not every:
        return
    across = _ticks([dot[0] for dot in every])
    upward = _ticks([dot[1] for dot in every])

    def place(at: float, value: float) -> tuple[float, float]:
        right = (at - across[0]) / (across[-1] - across[0])
        up = (value - upward[0]) / (upward[-1] - upward[0])
        return round(LEFT + right * (RIGHT - LEFT), 1), round(BOTTOM - up * (BOTTOM - TOP), 1)

    drawn = frame(title, x, y)
    for value in upward:
        _, at = place(across[0], value)
        drawn.append(f'<path d="M{LEFT} {at}H{RIGHT}" stroke="#ddd"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{value:.6g}</text>')
    for value in across:
        at, _ = place(value, upward[0])
        drawn.append(f'<text x="{at}" y="{BOTTOM + 16}" text-anchor="middle">{value:.6g}</text>')
    for index, (name, dots) in enumerate(finite.items()):
        colour = COLOURS[index % len(COLOURS)]
        for dot in dots:
            right, up = place(*dot)
            drawn.append(f'<circle cx="{right}" cy="{up}" r="4" fill="{colour}"/>')
        middle = TOP + 10 + 20 * index
        drawn.append(f'<rect x="{RIGHT + 20}" y="{middle - 4}" width="8" height="8" ')
        drawn[-1] += f'fill="{colour}"/>'
        drawn.append(f'<text x="{RIGHT + 36}" y="{middle + 4}">{escape(name)}</text>')
    atomic_write(path, ("\n".join([*drawn, "</svg>"]) + "\n").encode())


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly spaced, the first below all values and the last above."""
    low, high = min(values), max(values)
    raw = max((high - low) / TICKS, 1e-9 * max(abs(high), abs(low), 1e-3))
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step), max(math.floor(low / step) + 1, math.ceil(high / step))
    return [number * step for number in range(first, last + 1)]

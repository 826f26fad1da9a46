"""Tables and plots of `quality.py`: figures, and how each goes with the student's accuracy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intervals import Interval, pearson, spearman
from scatter import write_scatter

Row = dict[str, Any]
# With fewer, a correlation of anything with anything is near one.
LEAST_ROWS = 3


def correlations(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Pearson's r and Spearman's rho of each figure with top-1, over the rows that have it.

    Returns:
        By figure, then by "pearson" and "spearman": value, low, high and count. A figure that
        fewer than three rows have is left out; what does not vary has no value.
    """
    found = {}
    for figure in rows[0]["figures"]:
        pairs = _dots(rows, figure)
        if len(pairs) < LEAST_ROWS:
            continue
        x, y = zip(*pairs, strict=True)
        found[figure] = {
            "pearson": _as_json(pearson(x, y)),
            "spearman": _as_json(spearman(x, y)),
        }
    return found


def _dots(rows: Sequence[Row], figure: str) -> list[tuple[float, float]]:
    """(figure, top-1 in percent) of the rows that have the figure."""
    return [
        (row["figures"][figure], 100 * row["top1"])
        for row in rows
        if row["figures"][figure] is not None
    ]


def _as_json(interval: Interval) -> dict[str, float | None]:
    values = dataclasses.asdict(interval)
    del values["deviation"]
    return {k: v if math.isfinite(v) else None for k, v in values.items()}  # NaN is no JSON


def quality_summary(report: Row) -> str:
    """Markdown: a table of the figures, and one of their correlations."""
    rows = report["rows"]
    names = list(rows[0]["figures"])
    lines = [
        f"**{report['title']}**: {report['images']} images of each, against "
        f"{report['real_images']:,} real ones",
        "",
        "| source | method | top-1 % | " + " | ".join(names) + " |",
        "|---" * (3 + len(names)) + "|",
    ]
    for row in rows:
        known = (row["figures"][name] for name in names)
        figures = " | ".join("-" if value is None else f"{value:.3g}" for value in known)
        lines.append(f"| {row['name']} | {row['group']} | {100 * row['top1']:.2f} | {figures} |")
    if not report["correlations"]:
        return "\n".join([*lines, "", "Too few sources for correlations: three are needed.", ""])
    lines += [
        "",
        f"Correlation with the student's top-1, over {len(rows)} sources; 95 % bootstrap intervals "
        f"over sources. Of {2 * len(report['correlations'])} intervals about one in twenty "
        "excludes zero by chance.",
        "",
        "| figure | Pearson | Spearman |",
        "|---|---|---|",
    ]
    for name, both in report["correlations"].items():
        lines.append(f"| {name} | {_shown(both['pearson'])} | {_shown(both['spearman'])} |")
    return "\n".join(lines) + "\n"


def _shown(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "does not vary"
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def write_quality_plots(title: str, rows: Sequence[Row], out: Path) -> list[Path]:
    """One scatter plot a figure: accuracy against it, a colour for each method."""
    written = []
    for figure in rows[0]["figures"]:
        names = dict.fromkeys(row["group"] for row in rows)
        groups = {
            name: _dots([row for row in rows if row["group"] == name], figure) for name in names
        }
        path = out / f"{title}-{figure.replace(' ', '-')}.svg"
        write_scatter(path, f"{title}: accuracy against {figure}", groups, x=figure)
        if path.exists():
            written.append(path)
    return written

"""Markdown tables and plots of what trials came to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from intervals import Interval, mean, paired_difference
from plots import Point, write_plot
from trials import Row

Group = tuple[str, str]  # pair, budget
FAR_BEHIND = 15.0  # points of top-1


def grouped(rows: Sequence[Row]) -> dict[Group, dict[str, list[Row]]]:
    """Rows by pair and budget, then by method, in the order in which they come."""
    groups: dict[Group, dict[str, list[Row]]] = {}
    for row in rows:
        trial = row["trial"]
        group = groups.setdefault((trial["pair"]["name"], trial["budget"]), {})
        group.setdefault(trial["label"], []).append(row)
    return groups


def accuracy(rows: Sequence[Row]) -> dict[int, float]:
    """Top-1 in percent by seed."""
    return {row["trial"]["seed"]: 100 * row["top1"] for row in rows}


def shown(interval: Interval | None, sign: bool = False) -> str:
    """`81.20 [80.90, 81.60]`; of one value, that has no interval, `81.20`."""
    if interval is None:
        return "no common seed"
    mark = "+" if sign else ""
    if interval.count == 1:
        return f"{interval.value:{mark}.2f}"
    return f"{interval.value:{mark}.2f} [{interval.low:{mark}.2f}, {interval.high:{mark}.2f}]"


def summary_table(methods: dict[str, list[Row]], reference: str) -> list[str]:
    """One line a method; last its paired difference to `reference` (reference less method)."""
    lines = [
        f"| method | seeds | top-1 %, 95 % interval | deviation | {reference} less it, paired "
        "| agreement % | rounds | samples | teacher passes | seconds of synthesis | core-seconds "
        "| peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in methods.items():
        top1 = mean(list(accuracy(rows).values()))
        difference = (
            shown(paired_difference(accuracy(methods[reference]), accuracy(rows)), sign=True)
            if name != reference and reference in methods
            else ""
        )
        figures = {
            key: sum(row[key] for row in rows) / len(rows)
            for key in ("rounds", "samples", "teacher_passes", "synthesis_seconds", "core_seconds")
        }
        agreement = 100 * sum(row["agreement"] for row in rows) / len(rows)
        deviation = f"{top1.deviation:.2f}" if top1.count > 1 else ""
        peak = max(row["peak_memory_bytes"] for row in rows) / 2**20
        lines.append(
            f"| {name} | {top1.count} | {shown(top1)} | {deviation} | {difference} "
            f"| {agreement:.1f} | "
            + " | ".join(f"{value:,.0f}" for value in figures.values())
            + f" | {peak:,.0f} |"
        )
    return lines


def summary(rows: Sequence[Row], reference: str) -> str:
    """A table for every pair and budget, with what the figures mean."""
    lines = [
        "Last step of each run, on the whole test set. Intervals: percentile bootstrap over seeds; "
        "of three seeds that is their least and greatest value. Rounds tell whether equal seconds "
        "bought equal work: runs of one method whose rounds differ much had an unsteady machine.",
    ]
    for (pair, budget), methods in grouped(rows).items():
        any_row = next(iter(methods.values()))[0]
        lines += ["", f"**{pair}, {budget}** (teacher {any_row['teacher_top1']:.2%}, "]
        lines[-1] += f"{any_row['test_images']:,} test images)"
        lines += ["", *summary_table(methods, reference)]
    return "\n".join(lines) + "\n"


def write_plots(rows: Sequence[Row], out: Path) -> list[Path]:
    """Accuracy against processor time and against images made, for each pair.

    Methods that stay far behind the best are named, not drawn: a point is what matters at the top.
    """
    pairs: dict[str, list[Row]] = {}
    for row in rows:
        pairs.setdefault(row["trial"]["pair"]["name"], []).append(row)
    written = []
    axes = {"core_seconds": "core-seconds", "samples": "images made"}
    for pair, own in pairs.items():
        for key, axis in axes.items():
            path = out / f"{pair.replace(' ', '-')}-{key.replace('_', '-')}.svg"
            near, notes = _near_the_best(_series(own, key))
            write_plot(path, f"{pair}: accuracy against {axis}", near, x=axis, notes=notes)
            written.append(path)
    return written


def _near_the_best(
    series: dict[str, list[Point]],
) -> tuple[dict[str, list[Point]], list[str]]:
    """Lines with a point within `FAR_BEHIND` of the best, and what to say of the others."""
    best = max((point[1] for line in series.values() for point in line), default=0.0)
    top = {name: max(point[1] for point in line) for name, line in series.items()}
    near = {name: line for name, line in series.items() if top[name] >= best - FAR_BEHIND}
    far = [f"{name}: {top[name]:.1f}" for name in series if name not in near]
    return near, ["lower, not drawn:", *far] if far else []


def _series(rows: Sequence[Row], key: str) -> dict[str, list[Point]]:
    """A point for each budget of each method: the mean of its seeds and its interval."""
    series: dict[str, list[Point]] = {}
    for methods in grouped(rows).values():
        for name, own in methods.items():
            x = sum(row[key] for row in own) / len(own)
            top1 = mean(list(accuracy(own).values()))
            if x > 0:
                point = (x, top1.value, top1.low, top1.high)
                series.setdefault(name, []).append(point)
    return series

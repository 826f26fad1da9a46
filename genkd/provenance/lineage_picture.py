"""The tree of a lineage as a picture: the student on the left, what it was made from to its right.

    svg = render_svg(lineage_of(verification))

Each student is one box, however many were made from it. A box stands one column to the right of the
last student that was made from it, so that every line leads to the right (layers of the longest
path, ordered by the mean row of their neighbours: Sugiyama, Tagawa and Toda 1981).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Final

from genkd.provenance.lineage import ABOVE, RECORDED, UNKNOWN, Lineage
from genkd.provenance.record_checks import MAX_TIME
from genkd.provenance.verification import Status

GREEN, AMBER, RED = "#1a7f37", "#9a6700", "#cf222e"
COLOURS: Final[Mapping[str, str]] = {
    Status.VALID.value: GREEN,
    RECORDED: GREEN,
    Status.NOT_VALID.value: RED,
    Status.CANNOT_CHECK.value: AMBER,
    UNKNOWN: AMBER,
}
WORDS: Final[Mapping[str, str]] = {
    RECORDED: "recorded, file not at hand",
    UNKNOWN: "unknown, not at hand",
    Status.NOT_VALID.value: "NOT VALID",
    Status.CANNOT_CHECK.value: "cannot be checked",
}
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 300, 84, 56, 16, 14
LINE = 18  # from one line of text to the next
PLACE = tuple[int, float]  # column and row


@dataclass
class _Graph:
    """Each student once, and which was made from which.

    Attributes:
        boxes: By a key of their own, the student first.
        edges: Pairs of keys, child and parent.
    """

    boxes: dict[str, Lineage] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    def add(self, one: Lineage) -> str:
        """Take a student and its ancestors in; its key."""
        # What could not be read has no id, and is nobody else.
        key = one.record_id or f"unread {len(self.boxes)}"
        if key not in self.boxes or self.boxes[key].state == ABOVE:
            self.boxes[key] = one
        for parent in one.parents:
            edge = (key, self.add(parent))
            if edge not in self.edges:
                self.edges.append(edge)
        return key

    def columns(self) -> dict[str, int]:
        """The column of each key: the longest way to it from the student."""
        column = dict.fromkeys(self.boxes, 0)
        for _ in self.boxes:  # ids are hashes and make no circle; if they did, this ends
            late = [(c, p) for c, p in self.edges if column[p] <= column[c]]
            if not late:
                break
            for child, parent in late:
                column[parent] = max(column[parent], column[child] + 1)
        return column


def render_svg(tree: Lineage) -> str:
    """The tree as a picture, without scripts or outside references."""
    graph = _Graph()
    graph.add(tree)
    columns = graph.columns()
    segments = _segments(graph.edges, columns)
    places = _places(columns, segments)
    width = 2 * MARGIN + (BOX_WIDTH + GAP_X) * (1 + max(c for c, _ in places.values())) - GAP_X
    height = 2 * MARGIN + (BOX_HEIGHT + GAP_Y) * (1 + max(r for _, r in places.values())) - GAP_Y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="monospace" font-size="12">'
    ]
    parts += [_line(places[a], places[b], through=b not in graph.boxes) for a, b in segments]
    parts += [_box(places[key], one) for key, one in graph.boxes.items()]
    return "\n".join([*parts, "</svg>", ""])


def _segments(edges: list[tuple[str, str]], columns: dict[str, int]) -> list[tuple[str, str]]:
    """The lines from column to column; where one passes a column, it takes a place there.

    The places that lines take are added to `columns`.
    """
    found = []
    for child, parent in edges:
        last = child
        for column in range(columns[child] + 1, columns[parent]):
            stop = f"{child} {parent} {column}"
            columns[stop] = column
            found.append((last, stop))
            last = stop
        found.append((last, parent))
    return found


def _places(columns: dict[str, int], segments: list[tuple[str, str]]) -> dict[str, PLACE]:
    """Column and row of each key, the rows of each column around the middle."""
    by_column: dict[int, list[str]] = {}
    for key, column in columns.items():
        by_column.setdefault(column, []).append(key)
    children: dict[str, list[str]] = {}
    for child, parent in segments:
        children.setdefault(parent, []).append(child)
    tallest = max(map(len, by_column.values()))
    rows: dict[str, float] = {}
    for column in sorted(by_column):
        keys = by_column[column]
        mean = {key: _mean([rows[c] for c in children.get(key, ())]) for key in keys}
        for index, key in enumerate(sorted(keys, key=mean.__getitem__)):
            rows[key] = (tallest - len(keys)) / 2 + index
    return {key: (columns[key], row) for key, row in rows.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _left_top(place: PLACE) -> tuple[float, float]:
    column, row = place
    return MARGIN + column * (BOX_WIDTH + GAP_X), MARGIN + row * (BOX_HEIGHT + GAP_Y)


def _line(start: PLACE, end: PLACE, *, through: bool) -> str:
    """From a student to one that it was made from, or to the other side of a column between."""
    x, y = _left_top(start)
    to_x, to_y = _left_top(end)
    x, y, to_y = x + BOX_WIDTH, y + BOX_HEIGHT / 2, to_y + BOX_HEIGHT / 2
    bend = (x + to_x) / 2
    on = f" H{to_x + BOX_WIDTH:g}" if through else ""
    return (
        f'<path d="M{x:g} {y:g} C{bend:g} {y:g} {bend:g} {to_y:g} {to_x:g} {to_y:g}{on}" '
        'fill="none" stroke="#8c959f"/>'
    )


def _box(place: PLACE, one: Lineage) -> str:
    x, y = _left_top(place)
    colour = COLOURS.get(one.state, AMBER)
    lines = [
        f'<text x="{x + 10:g}" y="{y + LINE * number + 4:g}"{style}>{escape(text)}</text>'
        for number, (text, style) in enumerate(_lines(one, colour), start=1)
    ]
    return (
        f"<g><title>{escape(one.record_id)} {escape(one.node)}: {escape(one.detail)}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        f'fill="#ffffff" stroke="{colour}" stroke-width="2"/>{"".join(lines)}</g>'
    )


def _lines(one: Lineage, colour: str) -> list[tuple[str, str]]:
    """What a box says, each line with its style."""
    number = "round ?" if one.round is None else f"round {one.round}"
    node = f"node {_short(one.node)}" if one.node else "node unknown"
    run = f"run {_short(one.run_id)}" if one.run_id else "run unknown"
    return [
        (f"{number} · {node}", ' font-weight="bold"'),
        (f"{run} · {_date(one.recorded_at)}", ""),
        (f"student {_short(one.record_id) or '(unread)'}", ' fill="#57606a"'),
        (WORDS.get(one.state, one.state), f' fill="{colour}"'),
    ]


def _short(text: str) -> str:
    """An address or an id as people compare them: its beginning and its end."""
    return text if len(text) <= 14 else f"{text[:6]}…{text[-4:]}"


def _date(seconds: int) -> str:
    if not seconds:
        return "not recorded"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(seconds, MAX_TIME)))

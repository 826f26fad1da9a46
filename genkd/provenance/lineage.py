"""Where a student comes from: the tree of the students it was made from, each with its state.

    tree = lineage_of(verify(path, policy=policy, chain=reader))
    print(render_text(tree))

A student that several others were made from is shown in full once and named afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from genkd.provenance.record import StudentRecord
from genkd.provenance.record_checks import as_time
from genkd.provenance.typed_data import to_hex
from genkd.provenance.verification import Parent, ParentReceipt, Status, Verification

# States besides those of `Status`: the registry holds the record but the file is not at hand; or
# nothing is known; or the student was shown above.
RECORDED, UNKNOWN, ABOVE = "recorded", "unknown", "above"
COLOURS = {
    Status.VALID.value: "#1a7f37",
    RECORDED: "#1a7f37",
    Status.NOT_VALID.value: "#cf222e",
    Status.CANNOT_CHECK.value: "#9a6700",
    UNKNOWN: "#9a6700",
    ABOVE: "#57606a",
}


@dataclass(frozen=True)
class Lineage:
    """One student in the tree.

    Attributes:
        record_id: `0x...`, empty when the receipt could not be read.
        state: `valid`, `not_valid`, `cannot_check`, `recorded`, `unknown` or `above`.
        detail: The answer in one line.
        node: The node's address, empty when unknown.
        round: The round, None when unknown.
        parents: The students it was made from.
    """

    record_id: str
    state: str
    detail: str
    node: str = ""
    round: int | None = None
    parents: tuple[Lineage, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "recordId": self.record_id or None,
            "state": self.state,
            "detail": self.detail,
            "node": self.node or None,
            "round": self.round,
            "parents": [parent.to_json() for parent in self.parents],
        }


def lineage_of(verification: Verification) -> Lineage:
    """The tree of a verified release."""
    return _of_release(verification, set())


def _of_release(verification: Verification, shown: set[str]) -> Lineage:
    receipt = verification.receipt
    record: StudentRecord | None = None if receipt is None else receipt.record
    record_id = "" if receipt is None else to_hex(receipt.record_id())
    if record_id in shown:
        return Lineage(record_id, ABOVE, "shown above")
    if record_id:
        shown.add(record_id)
    return Lineage(
        record_id,
        verification.status.value,
        verification.summary,
        "" if record is None else record.node,
        None if record is None else record.round,
        tuple(_of_parent(parent, shown) for parent in verification.parents),
    )


def _of_parent(parent: Parent, shown: set[str]) -> Lineage:
    if parent.verification is not None:
        return _of_release(parent.verification, shown)
    record_id = to_hex(parent.record_id)
    if parent.receipt is not None:
        return _of_receipt(record_id, parent.receipt)
    if parent.entry is None:
        return Lineage(record_id, UNKNOWN, "its release is not at hand")
    if parent.entry.revoked or not parent.entry.node_counted:
        state, detail = Status.NOT_VALID.value, "revoked, or its node was not enrolled"
    else:
        state, detail = (
            RECORDED,
            f"recorded {as_time(parent.entry.recorded_at)}, its file is not at hand",
        )
    return Lineage(record_id, state, detail, parent.entry.node)


def _of_receipt(record_id: str, found: ParentReceipt) -> Lineage:
    state = RECORDED if found.status is Status.VALID else found.status.value
    if found.receipt is None:
        return Lineage(record_id, state, found.detail)
    record = found.receipt.record
    return Lineage(record_id, state, found.detail, record.node, record.round)


def _label(one: Lineage) -> str:
    round_number = "" if one.round is None else f" round {one.round}"
    return f"{one.record_id[:18] or '(unread)'}{round_number}"


def render_text(tree: Lineage) -> str:
    """The tree as indented lines."""
    lines: list[str] = []

    def walk(one: Lineage, first: str, rest: str) -> None:
        who = f" by {one.node}" if one.node else ""
        lines.append(f"{first}{_label(one)}{who}: {one.detail}")
        for i, parent in enumerate(one.parents):
            last = i == len(one.parents) - 1
            branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
            walk(parent, rest + branch, rest + below)

    walk(tree, "", "")
    return "\n".join(lines)


BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 260, 44, 60, 14, 12


def render_svg(tree: Lineage) -> str:
    """The tree as a picture, the student on the left, without scripts or outside references."""
    boxes: list[tuple[int, float, Lineage]] = []
    edges: list[tuple[int, float, float]] = []
    rows = 0

    def place(one: Lineage, column: int) -> float:
        """The row of a student: the middle of its parents' rows, or the next free one."""
        nonlocal rows
        below = [place(parent, column + 1) for parent in one.parents]
        if below:
            row = (below[0] + below[-1]) / 2
        else:
            row = float(rows)
            rows += 1
        boxes.append((column, row, one))
        edges.extend((column, row, parent_row) for parent_row in below)
        return row

    place(tree, 0)
    columns = max(column for column, _, _ in boxes) + 1
    width = 2 * MARGIN + columns * BOX_WIDTH + (columns - 1) * GAP_X
    height = 2 * MARGIN + rows * (BOX_HEIGHT + GAP_Y) - GAP_Y

    def left(column: int) -> int:
        return MARGIN + column * (BOX_WIDTH + GAP_X)

    def top(row: float) -> float:
        return MARGIN + row * (BOX_HEIGHT + GAP_Y)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="12">'
    ]
    for column, row, parent_row in edges:
        x, y = left(column) + BOX_WIDTH, top(row) + BOX_HEIGHT / 2
        end = top(parent_row) + BOX_HEIGHT / 2
        parts.append(
            f'<path d="M{x} {y:g} C{x + GAP_X / 2:g} {y:g} {x + GAP_X / 2:g} {end:g} '
            f'{x + GAP_X} {end:g}" fill="none" stroke="#8c959f"/>'
        )
    for column, row, one in boxes:
        parts.append(_box(left(column), top(row), one))
    return "\n".join([*parts, "</svg>", ""])


def _box(x: float, y: float, one: Lineage) -> str:
    colour = COLOURS[one.state]
    state = one.state.replace("_", " ")
    return (
        f"<g><title>{escape(one.record_id)} {escape(one.node)}: {escape(one.detail)}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        f'fill="#ffffff" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{x + 10:g}" y="{y + 18:g}">{escape(_label(one))}</text>'
        f'<text x="{x + 10:g}" y="{y + 35:g}" fill="{colour}">{escape(state)}</text></g>'
    )

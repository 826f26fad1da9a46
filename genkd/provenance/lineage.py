"""Where a student comes from: the tree of the students it was made from, each with its state.

    tree = lineage_of(verify(path, policy=policy, chain=reader))
    print(render_text(tree))

A student that several others were made from is shown in full once and named afterwards. The
picture is drawn by `lineage_picture`.
"""

from __future__ import annotations

from dataclasses import dataclass

from genkd.provenance.record import StudentRecord
from genkd.provenance.record_checks import as_time
from genkd.provenance.typed_data import to_hex
from genkd.provenance.verification import Parent, ParentReceipt, Status, Verification

# States besides those of `Status`: the registry holds the record but the file is not at hand; or
# nothing is known; or the student was shown above.
RECORDED, UNKNOWN, ABOVE = "recorded", "unknown", "above"


@dataclass(frozen=True)
class Lineage:
    """One student in the tree.

    Attributes:
        record_id: `0x...`, empty when the receipt could not be read.
        state: `valid`, `not_valid`, `cannot_check`, `recorded`, `unknown` or `above`.
        detail: The answer in one line.
        node: The node's address, empty when unknown.
        round: The round, None when unknown.
        run_id: The run, `0x...`, empty when unknown.
        recorded_at: Unix second at which the registry recorded it, 0 when unknown.
        parents: The students it was made from.
    """

    record_id: str
    state: str
    detail: str
    node: str = ""
    round: int | None = None
    run_id: str = ""
    recorded_at: int = 0
    parents: tuple[Lineage, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "recordId": self.record_id or None,
            "state": self.state,
            "detail": self.detail,
            "node": self.node or None,
            "round": self.round,
            "runId": self.run_id or None,
            "recordedAt": self.recorded_at or None,
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
        "" if record is None else to_hex(record.run_id),
        verification.recorded_at,
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
    recorded_at = parent.entry.recorded_at
    return Lineage(record_id, state, detail, parent.entry.node, recorded_at=recorded_at)


def _of_receipt(record_id: str, found: ParentReceipt) -> Lineage:
    state = RECORDED if found.status is Status.VALID else found.status.value
    if found.receipt is None:
        return Lineage(record_id, state, found.detail)
    record, run_id = found.receipt.record, to_hex(found.receipt.record.run_id)
    known = (record.node, record.round, run_id, found.recorded_at)
    return Lineage(record_id, state, found.detail, *known)


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

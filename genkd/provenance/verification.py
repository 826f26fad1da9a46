"""What checking a release gives: the outcome of each numbered check, and the answer.

verification = verify(path, policy=Policy(domain), chain=reader)     # see `verifier`
verification.status            # valid, not_valid or cannot_check
verification.require()         # or raise
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from genkd.errors import CannotCheck, VerificationFailed
from genkd.provenance.chain import Entry
from genkd.provenance.receipt import Receipt
from genkd.provenance.statement import Statement
from genkd.provenance.typed_data import Domain, to_hex


class Outcome(StrEnum):
    """What became of one check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not_checked"


class Status(StrEnum):
    """The answer."""

    VALID = "valid"
    NOT_VALID = "not_valid"
    CANNOT_CHECK = "cannot_check"


@dataclass(frozen=True)
class Policy:
    """What the caller trusts and asks for.

    Attributes:
        domain: The chain and registry that count; None checks the signatures only.
        nodes: The nodes whose students are accepted; None accepts every enrolled one.
        run_ids: The runs that are accepted; None accepts all.
        architectures: The architectures that are accepted; None accepts all.
        said_by: Where the caller read which domain counts, for people.
    """

    domain: Domain | None = None
    nodes: frozenset[str] | None = None
    run_ids: frozenset[bytes] | None = None
    architectures: frozenset[str] | None = None
    said_by: str = ""


@dataclass(frozen=True)
class Check:
    """One numbered check.

    Attributes:
        number: 0 to 10.
        name: One word.
        outcome: What became of it.
        detail: One line: what was found, or why it failed or was not made.
    """

    number: int
    name: str
    outcome: Outcome
    detail: str

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "number": self.number,
            "name": self.name,
            "outcome": self.outcome.value,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class ParentReceipt:
    """What checking a parent's receipt gave, its release not being at hand.

    Attributes:
        status: Valid if its node signed it and the registry holds it, in order and not revoked.
        detail: One line: what was found, why it is not valid, or why it could not be checked.
        receipt: The receipt, once it is found to be the parent's and signed by its node.
        recorded_at: Unix second at which the registry recorded it; 0 unless valid.
    """

    status: Status
    detail: str
    receipt: Receipt | None = None
    recorded_at: int = 0


@dataclass(frozen=True)
class Parent:
    """A student that another was made from.

    Attributes:
        record_id: Its record id, 32 bytes.
        verification: What checking its release gave; None when the release is not at hand.
        entry: What the registry says of the id alone, when nothing else is at hand.
        receipt: What checking its receipt gave; None when that is not at hand, or the release is.
    """

    record_id: bytes
    verification: Verification | None
    entry: Entry | None = None
    receipt: ParentReceipt | None = None

    @property
    def recorded_at(self) -> int:
        """Unix second at which the registry recorded it, 0 when unknown."""
        found = self.entry or self.receipt or self.verification
        return found.recorded_at if found else 0


@dataclass(frozen=True)
class Verification:
    """What checking a release gave.

    Attributes:
        path: What was checked.
        checks: The checks 0 to 10, in order.
        receipt: The receipt, once it is read; trust it only as far as the checks passed.
        statement: The provenance statement, once check 4 passed.
        recorded_at: Unix second at which the registry recorded it; 0 unless check 7 passed.
        parents: What was found of the students it was made from.
        offline: Whether no chain was asked.
    """

    path: Path
    checks: tuple[Check, ...]
    receipt: Receipt | None = None
    statement: Statement | None = None
    recorded_at: int = 0
    parents: tuple[Parent, ...] = ()
    offline: bool = True

    @property
    def failed(self) -> Check | None:
        """The check that failed, if one did."""
        return next((check for check in self.checks if check.outcome is Outcome.FAILED), None)

    @property
    def status(self) -> Status:
        """Valid only if every check was made and passed."""
        if self.failed is not None:
            return Status.NOT_VALID
        unmade = any(check.outcome is not Outcome.PASSED for check in self.checks)
        return Status.CANNOT_CHECK if unmade else Status.VALID

    @property
    def signed(self) -> bool:
        """Whether checks 1 to 5 passed: the node signed exactly these files."""
        return all(check.outcome is Outcome.PASSED for check in self.checks[1:6])

    @property
    def summary(self) -> str:
        """The answer in one line."""
        if self.failed is not None:
            return f"not valid: check {self.failed.number} failed: {self.failed.detail}"
        if self.status is Status.VALID:
            return "valid"
        unmade = next(c for c in self.checks[1:] if c.outcome is not Outcome.PASSED)
        start = "signed, not recorded" if self.signed and self.offline else "cannot check"
        return f"{start}: check {unmade.number} was not made: {unmade.detail}"

    def require(self) -> Verification:
        """This verification, if it is valid.

        Raises:
            VerificationFailed: If it is not valid.
            CannotCheck: If a check could not be made.
        """
        if self.status is Status.NOT_VALID:
            raise VerificationFailed(
                f"{self.path} is {self.summary}", hint="do not use it; ask the node for it again"
            )
        if self.status is Status.CANNOT_CHECK:
            raise CannotCheck(
                f"{self.path}: {self.summary}", hint="name an endpoint and the registry you trust"
            )
        return self

    def to_json(self) -> dict[str, object]:
        """Plain values; parents by record id only (`lineage` prints the tree)."""
        record = None if self.receipt is None else self.receipt.record
        return {
            "path": str(self.path),
            "answer": self.status.value,
            "summary": self.summary,
            "failed": None if self.failed is None else self.failed.number,
            "recordId": None if self.receipt is None else to_hex(self.receipt.record_id()),
            "node": None if record is None else record.node,
            "runId": None if record is None else to_hex(record.run_id),
            "round": None if record is None else record.round,
            "recordedAt": self.recorded_at or None,
            "parents": [to_hex(parent.record_id) for parent in self.parents],
            "checks": [check.to_json() for check in self.checks],
        }

"""Is this student what it says it is? Ten numbered checks, the same numbers as in the code.

    verification = verify("student-0x...", policy=Policy(domain), chain=reader)
    verification.status            # valid, not_valid or cannot_check
    verification.require()         # or raise

 0  trust      which chain and registry count, as the caller says, never the release
 1  files      the four files, nothing else; the student read strictly; the receipt well-formed
 2  hashes     the student's sha256 and tensor root are the record's
 3  bundle     both keys signed the node's profile, and its P-256 key signed the files
 4  statement  provenance.json has the record's hash, is well-formed, and says what the record says
 5  signature  the node's Ethereum key signed the record for the trusted registry; file, record and
               directory name agree
 6  contract   the endpoint is on the trusted chain, and the code at the address is this project's
 7  record     the registry holds it, confirmed; in time, the node enrolled then, the teacher
               committed before
 8  revocation neither the node nor the registry's owner took it back
 9  parents    the students it was made from, likewise, up to the roots; where a parent's file is
               not at hand, its signed receipt or the registry's entry
10  policy     what else the caller asks for

A check that fails ends it: the release is not valid. A check that could not be made is never taken
for passed: without a chain the answer is at best "signed, not recorded".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from genkd.errors import CannotCheck, GenKDError, InputFileRefused, UsageError
from genkd.provenance.chain import Answer, ChainReader
from genkd.provenance.parent_receipt import check_receipt, find_receipt
from genkd.provenance.record_checks import (
    as_time,
    ask_about,
    require_confirmed,
    require_not_revoked,
)
from genkd.provenance.release import directory_name
from genkd.provenance.signed_release import SignedRelease, Unmade, refused
from genkd.provenance.typed_data import Domain, to_hex
from genkd.provenance.verification import (
    Check,
    Outcome,
    Parent,
    ParentReceipt,
    Policy,
    Status,
    Verification,
)

MAX_LINEAGE = 1000  # releases in one verification
MAX_DEPTH = 50  # generations
PARENTS_FOLDER = "parents"  # beside a release: receipts, or releases, of its parents


def verify(
    path: str | Path,
    *,
    policy: Policy | None = None,
    chain: ChainReader | None = None,
    parents_in: Sequence[str | Path] = (),
) -> Verification:
    """Check a release directory, or a bare student file whose release lies beside it.

    Args:
        path: The directory or the file.
        policy: What counts; the default checks signatures only.
        chain: The registry to ask; None leaves checks 6 to 8 unmade.
        parents_in: Folders in which the parents are looked for, as releases or as receipts
            (`student-0x....receipt.json`), besides the folder that holds this release and its
            subfolder `parents`.

    Returns:
        What was found. A bad release, however hostile, is an answer and not an exception.

    Raises:
        UsageError: If a chain is given without a trusted domain.
        InputFileRefused: If there is nothing at `path`.
    """
    policy = policy or Policy()
    if chain is not None and policy.domain is None:
        raise UsageError(
            "which registry is trusted must be said by the one who asks",
            hint="give the chain id and the registry's address",
        )
    path = Path(path)
    if not os.path.exists(path):  # where Path.exists would raise, this is False
        raise InputFileRefused(f"there is nothing to read at {path}", hint="check the path")
    shared = _Shared(policy.domain, chain, tuple(Path(folder) for folder in parents_in))
    return _Verifier(path, policy, shared).run()


@dataclass
class _Shared:
    """What the verifications of one tree share: the endpoint, bounds, and what is known already.

    `chain` becomes None once the endpoint proved to be of no use, so that a silent one is waited
    for once and not for every parent.
    """

    domain: Domain | None
    chain: ChainReader | None
    folders: tuple[Path, ...]
    known: dict[bytes, Verification] = field(default_factory=dict)
    receipts: dict[bytes, ParentReceipt] = field(default_factory=dict)
    depth: int = 0

    def verify(self, record_id: bytes, beside: Path) -> Verification | None:
        """The verification of the release of a record, None if it is not at hand."""
        if record_id in self.known:
            return self.known[record_id]
        name = directory_name(record_id)
        found = next((f / name for f in self._around(beside) if (f / name).is_dir()), None)
        if found is None:
            return None
        self._require_room()
        self.depth += 1
        result = _Verifier(found, Policy(self.domain), self).run()
        self.depth -= 1
        self.known[record_id] = result
        return result

    def check_receipt(self, record_id: bytes, beside: Path, domain: Domain) -> ParentReceipt | None:
        """What the receipt of a record shows, None if it is not at hand."""
        if record_id in self.receipts:
            return self.receipts[record_id]
        found = find_receipt(record_id, self._around(beside))
        if found is None:
            return None
        self._require_room()
        try:
            result = check_receipt(found, record_id, domain, self.chain)
        except CannotCheck as error:
            self.chain = None
            result = ParentReceipt(Status.CANNOT_CHECK, error.message)
        self.receipts[record_id] = result
        return result

    def _around(self, beside: Path) -> tuple[Path, ...]:
        return (beside, beside / PARENTS_FOLDER, *self.folders)

    def _require_room(self) -> None:
        if len(self.known) + len(self.receipts) >= MAX_LINEAGE or self.depth >= MAX_DEPTH:
            raise Unmade(f"its lineage exceeds {MAX_LINEAGE} releases or {MAX_DEPTH} generations")


class _Verifier:
    """One verification: each method is the check of its number, and sets what later ones use."""

    def __init__(self, path: Path, policy: Policy, shared: _Shared) -> None:
        self.path = path
        self.policy = policy
        self.shared = shared
        self.offline = shared.chain is None
        self.release = SignedRelease(path, policy.domain)
        self.answer: Answer | None = None
        self.recorded_at = 0
        self.parents: tuple[Parent, ...] = ()

    def run(self) -> Verification:
        """Make the checks in order."""
        steps: dict[str, Callable[[], str]] = {
            "trust": self.check_0,
            "files": self.release.check_1,
            "hashes": self.release.check_2,
            "bundle": self.release.check_3,
            "statement": self.release.check_4,
            "signature": self.release.check_5,
            "contract": self.check_6,
            "record": self.check_7,
            "revocation": self.check_8,
            "parents": self.check_9,
            "policy": self.check_10,
        }
        checks: list[Check] = []
        stopped = ""
        for number, (name, step) in enumerate(steps.items()):
            outcome, detail = Outcome.NOT_CHECKED, stopped
            if not stopped:
                outcome, detail = self._make(step)
            checks.append(Check(number, name, outcome, detail))
            if outcome is Outcome.FAILED:
                stopped = f"check {number} failed"
            elif outcome is Outcome.NOT_CHECKED and 1 <= number <= 5:
                stopped = stopped or f"check {number} was not made"
        return Verification(
            self.path,
            tuple(checks),
            getattr(self.release, "receipt", None),
            getattr(self.release, "statement", None),
            self.recorded_at,
            self.parents,
            self.offline,
        )

    def _make(self, step: Callable[[], str]) -> tuple[Outcome, str]:
        """Make one check; whatever a release or a chain does becomes an outcome."""
        try:
            return Outcome.PASSED, step()
        except Unmade as reason:
            return Outcome.NOT_CHECKED, str(reason)
        except CannotCheck as error:
            self.shared.chain = None
            return Outcome.NOT_CHECKED, error.message
        except GenKDError as error:
            return Outcome.FAILED, error.message

    def check_0(self) -> str:
        """What is trusted comes from the caller."""
        domain = self.policy.domain
        if domain is None:
            raise Unmade("no registry was named as trusted")
        said = self.policy.said_by and f" (from {self.policy.said_by})"
        return f"chain {domain.chain_id}, registry {domain.contract}{said}"

    def check_6(self) -> str:
        """The endpoint serves the trusted chain, and the registry is this project's contract."""
        chain, trusted = self._chain, self.release.domain
        chain_id = chain.chain_id()
        if chain_id != trusted.chain_id:
            raise _no_use(f"the endpoint serves chain {chain_id}, not {trusted.chain_id}")
        fault = chain.fault_of_contract()
        if fault is not None:
            raise _no_use(fault)
        return f"the registry's code is at {trusted.contract}"

    def check_7(self) -> str:
        """The registry holds the record, confirmed, and everything about it was in order then."""
        receipt = self.release.receipt
        self.answer = ask_about(self._chain, receipt, self.release.record_id)
        self.recorded_at = require_confirmed(self._chain, self.answer, receipt)
        return f"recorded {as_time(self.recorded_at)}, confirmed"

    def check_8(self) -> str:
        """Nobody who may has taken it back, as of the newest block."""
        if self.answer is None:
            raise Unmade("the registry did not answer about it")
        require_not_revoked(self.answer)
        return "not revoked"

    def check_9(self) -> str:
        """Every parent is valid itself, or at least recorded and not revoked."""
        ids = self.release.statement.parents
        if len(ids) > MAX_LINEAGE:
            raise Unmade(f"its {len(ids)} parents are more than {MAX_LINEAGE}")
        self.parents = self._find_parents(ids)
        unmade = [reason for parent in self.parents if (reason := self._check_parent(parent))]
        if unmade:
            more = f" and {len(unmade) - 1} more" if len(unmade) > 1 else ""
            raise Unmade(f"its parent {unmade[0]}{more}")
        alone = sum(parent.verification is None for parent in self.parents)
        without = f", {alone} of them recorded with the file not at hand" if alone else ""
        return f"{len(ids)} parents{without}" if ids else "it has no parents"

    def _find_parents(self, ids: Sequence[bytes]) -> tuple[Parent, ...]:
        """What is at hand of each parent: its release, else its receipt, else its entry."""
        beside, shared = self.release.files.path.absolute().parent, self.shared
        found = {one: shared.verify(one, beside) for one in ids}
        receipts = {
            one: shared.check_receipt(one, beside, self.release.domain)
            for one in ids
            if found[one] is None
        }
        absent = [one for one, receipt in receipts.items() if receipt is None]
        known = shared.chain.entries(absent) if shared.chain and absent else ()
        entries = dict(zip(absent, known, strict=bool(known)))
        return tuple(Parent(one, found[one], entries.get(one), receipts.get(one)) for one in ids)

    def _check_parent(self, parent: Parent) -> str | None:
        """Why nothing can be said about a parent, None if all is well with it."""
        name, entry = to_hex(parent.record_id), parent.entry
        found, receipt = parent.verification, parent.receipt
        if found is not None and found.status is Status.NOT_VALID:
            raise refused(f"its parent {name} is {found.summary}")
        if receipt is not None and receipt.status is Status.NOT_VALID:
            raise refused(f"its parent {name} is not valid: {receipt.detail}")
        if entry is not None and (entry.revoked or not entry.node_counted):
            raise refused(f"its parent {name} was revoked, or its node was not enrolled")
        if self.recorded_at and parent.recorded_at > self.recorded_at:
            raise refused(f"its parent {name} was recorded after it")
        if found is not None and found.status is Status.CANNOT_CHECK:
            return f"{name}: {found.summary}"
        if receipt is not None and receipt.status is Status.CANNOT_CHECK:
            return f"{name}: {receipt.detail}"
        if found is None and receipt is None and entry is None:
            return f"{name} is not at hand"
        return None

    def check_10(self) -> str:
        """What else the caller asks for."""
        policy, record, architecture = self.policy, self.release.record, self.release.architecture
        if policy.nodes is not None and record.node not in policy.nodes:
            raise refused(f"the node {record.node} is not among the accepted ones")
        if policy.run_ids is not None and record.run_id not in policy.run_ids:
            raise refused(f"the run {to_hex(record.run_id)} is not among the accepted ones")
        if policy.architectures is not None and architecture not in policy.architectures:
            raise refused(f"the architecture {architecture} is not among the accepted ones")
        return "accepted"

    @property
    def _chain(self) -> ChainReader:
        if self.shared.chain is None:
            raise Unmade("no endpoint was named" if self.offline else "the endpoint is of no use")
        return self.shared.chain


def _no_use(reason: str) -> CannotCheck:
    return CannotCheck(reason, hint="name an endpoint of the trusted chain")

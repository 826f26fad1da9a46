"""What comes back: the merged student of a round, verified before it is kept.

    path = keep(share, membership, policy, domain, registry)
    shared_students(membership)[-1].path           # where the next round starts from

::

    membership/shared/0x<run id>/round-000001/
        student-0x.../                     the merged release, four files
        parents/student-0x....receipt.json what it was made from
        acknowledgement.json               the coordinator's word that it got this node's release

A student is kept if all ten checks of `genkd.provenance.verifier` pass on the chain, the run's
coordinator as the chain names it signed it, and every student it was made from is proven by its
receipt. It appears in one rename, so that a kill leaves all of it or nothing. No name in a message
becomes a name on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from contracts.acknowledgement import SignedAcknowledgement
from contracts.exchange import ShareRequest
from genkd.durable import TEMPORARY_PREFIX, atomic_write, flush_folder, unwritable
from genkd.errors import CannotCheck, InputFileRefused, RefusedByPolicy, VerificationFailed
from genkd.provenance import Policy as Trust
from genkd.provenance import Verification, verify
from genkd.provenance.bundle import BUNDLE_NAME
from genkd.provenance.parent_receipt import check_receipt
from genkd.provenance.receipt import Receipt
from genkd.provenance.release import (
    DIRECTORY_NAME,
    RECEIPT_NAME,
    STATEMENT_NAME,
    directory_name,
    read_receipt,
    read_release,
    receipt_file_name,
    replace_receipt,
)
from genkd.provenance.statement import STUDENT_NAME
from genkd.provenance.typed_data import BYTES32, Domain, to_hex
from genkd.provenance.verification import Outcome, Status
from node.federation_registry import RunReader
from node.outbox import release_directory
from node.policy import Policy

SHARED_FOLDER: Final = "shared"
PARENTS_FOLDER: Final = "parents"
ACKNOWLEDGEMENT_FILE: Final = "acknowledgement.json"
LOCK_FILE: Final = ".inbox.lock"
ROUND_NAME = re.compile(r"round-(\d{6,10})")
NOBODY = "0x" + "0" * 40


@dataclass(frozen=True)
class SharedStudent:
    """A merged student that this node keeps.

    Attributes:
        run_id: Its run, 32 bytes.
        round: Its round.
        path: Its release directory.
    """

    run_id: bytes
    round: int
    path: Path

    @property
    def student(self) -> Path:
        """The model file, for `distill --init-student`."""
        return self.path / STUDENT_NAME


def round_folder(membership: Path, run_id: bytes, round_number: int) -> Path:
    """Where the student of a round is kept."""
    return membership / SHARED_FOLDER / to_hex(run_id) / f"round-{round_number:06d}"


def shared_students(membership: Path) -> list[SharedStudent]:
    """The merged students that are kept, by run and round, the newest round of a run last."""
    found = []
    for path in (membership / SHARED_FOLDER).glob("0x*/round-*/student-0x*"):
        number, run = ROUND_NAME.fullmatch(path.parent.name), path.parent.parent.name
        if number and BYTES32.fullmatch(run) and DIRECTORY_NAME.fullmatch(path.name):
            found.append(SharedStudent(bytes.fromhex(run[2:]), int(number[1]), path))
    return sorted(found, key=lambda one: (one.run_id, one.round))


def keep(
    share: ShareRequest, membership: Path, policy: Policy, domain: Domain, registry: RunReader
) -> Path:
    """Verify a merged student and keep it; safe to repeat, to kill anywhere, and to run twice.

    Args:
        share: What the coordinator sent.
        membership: The folder of the membership.
        policy: What its owner allows.
        domain: The registry that is trusted.
        registry: That registry on its chain.

    Returns:
        The release directory.

    Raises:
        RefusedByPolicy: If the run or the size is none that the owner allows.
        InputFileRefused: If a file is malformed, or belongs to another run, round or node.
        VerificationFailed: If a check fails, or another student of the round is kept already.
        CannotCheck: If a check could not be made: the same message may succeed later.
        ResourceExhausted: If it cannot be written.
    """
    if share.run_id not in policy.run_ids:
        raise RefusedByPolicy(
            "policy: this node takes no part in the run", hint="add the run to policy.toml"
        )
    if sum(map(len, share.files.values())) > policy.max_release_bytes:
        raise RefusedByPolicy(
            f"policy: the student is larger than {policy.max_release_bytes} bytes",
            hint="raise max_release_bytes in policy.toml",
        )
    _require_registry(domain, registry)
    receipt = Receipt.from_bytes(share.files[RECEIPT_NAME])
    if (receipt.record.run_id, receipt.record.round) != (share.run_id, share.round):
        raise _foreign("the merged student is of another run or round")
    target = round_folder(membership, share.run_id, share.round)
    release = target / directory_name(receipt.record_id())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(membership / SHARED_FOLDER / LOCK_FILE):
            _delete_temporaries(target.parent)
            with _staging(target.parent) as staging:
                own = _own_receipt(share, staging, policy, domain, registry)
                kept = _kept(target, release, share)
                moved = [] if kept is None else _moved(target / PARENTS_FOLDER, share)
                if moved or kept != share.files[RECEIPT_NAME]:
                    _stage(staging, release.name, share, policy, domain, registry)
                if kept is None:
                    staging.chmod(0o755)
                    os.rename(staging, target)
                    flush_folder(target.parent)
                for path, data in moved:
                    atomic_write(path, data)
                if kept not in (None, share.files[RECEIPT_NAME]):  # the chain reorganised
                    replace_receipt(release, receipt)
            if own is not None:
                replace_receipt(*own)
    except OSError as error:
        raise unwritable(target, error) from error
    return release


# ------------------------------------------------------------------ on the disk


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one message at a time work in the inbox."""
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _delete_temporaries(folder: Path) -> None:
    """Remove what a kill left half-written; nobody else works here."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder beside the target, gone afterwards unless it was renamed."""
    path = Path(tempfile.mkdtemp(dir=folder, prefix=TEMPORARY_PREFIX))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _kept(target: Path, release: Path, share: ShareRequest) -> bytes | None:
    """The receipt of the same student, if it is kept already; None if the round has none yet."""
    if not os.path.lexists(target):
        return None
    if not release.is_dir():
        raise VerificationFailed(
            "another student of this round is kept already",
            hint="a round has one merged student; ask the coordinator why there are two",
        )
    try:
        kept = read_release(release)
    except InputFileRefused as error:
        raise _damaged(target) from error
    sent = (share.files[STUDENT_NAME], share.files[STATEMENT_NAME], share.files[BUNDLE_NAME])
    if (kept.student, kept.statement, kept.bundle) != sent:
        raise _damaged(target)
    return kept.receipt


def _moved(parents: Path, share: ShareRequest) -> list[tuple[Path, bytes]]:
    """The parents' receipts that differ from those that are kept: they name other blocks now."""
    sent = [(parents / receipt_file_name(one), data) for one, data in share.parents.items()]
    return [(path, data) for path, data in sent if not path.is_file() or path.read_bytes() != data]


def _stage(
    staging: Path,
    name: str,
    share: ShareRequest,
    policy: Policy,
    domain: Domain,
    registry: RunReader,
) -> None:
    """Write what the round's folder will hold, and verify it there."""
    release, parents = staging / name, staging / PARENTS_FOLDER
    release.mkdir()
    parents.mkdir()
    for file_name, data in share.files.items():
        atomic_write(release / file_name, data)
    for record_id, data in share.parents.items():
        atomic_write(parents / receipt_file_name(record_id), data)
    coordinator = _coordinator(share, registry)
    if share.acknowledgement is not None:
        _check_acknowledgement(share.acknowledgement, share, coordinator, policy, domain)
        atomic_write(staging / ACKNOWLEDGEMENT_FILE, share.acknowledgement)
    trust = Trust(domain, nodes=frozenset({coordinator}), run_ids=frozenset({share.run_id}))
    verification = verify(release, policy=trust, chain=registry)
    _require_valid(verification, staging)
    _require_parents(verification, share)


# ------------------------------------------------------------------ what is checked


def _require_registry(domain: Domain, registry: RunReader) -> None:
    """The endpoint serves the trusted chain and registry, before it is believed in anything."""
    served = registry.chain_id()
    fault = registry.fault_of_contract() if served == domain.chain_id else "it is another chain's"
    if fault is not None:
        raise CannotCheck(
            f"the endpoint is of no use: {fault}", hint="name one of the trusted chain"
        )


def _coordinator(share: ShareRequest, registry: RunReader) -> str:
    """Who may merge in this run, as the chain says."""
    coordinator = registry.run(share.run_id).coordinator
    if coordinator == NOBODY:
        raise VerificationFailed(
            "the registry knows no such run", hint="ask the coordinator for the run's name"
        )
    return coordinator


def _require_valid(verification: Verification, staging: Path) -> None:
    """Say which check failed or was not made, without the paths of this machine."""
    if verification.status is Status.VALID:
        return
    check = verification.failed or next(
        check for check in verification.checks if check.outcome is not Outcome.PASSED
    )
    detail = check.detail.replace(f"{staging}{os.sep}", "")
    if verification.status is Status.NOT_VALID:
        raise VerificationFailed(
            f"the merged student is not valid: check {check.number} ({check.name}): {detail}",
            hint="it is not kept; ask the coordinator what happened",
        )
    raise CannotCheck(
        f"the merged student cannot be checked yet: check {check.number} ({check.name}): {detail}",
        hint="the coordinator sends it again; see whether the chain answers",
    )


def _require_parents(verification: Verification, share: ShareRequest) -> None:
    """Every student it was made from is there by its receipt, is of the run, and no later."""
    statement = verification.statement
    if statement is None or set(statement.parents) != set(share.parents):
        raise _foreign("the receipts are not those of the students it was made from")
    records = [Receipt.from_bytes(data).record for data in share.parents.values()]
    if any(one.run_id != share.run_id or one.round > share.round for one in records):
        raise _foreign("it was made from a student of another run or of a later round")
    if share.round > 0 and not any(one.round == share.round for one in records):
        raise _foreign("it was made from no student of its round")


def _own_receipt(
    share: ShareRequest, staging: Path, policy: Policy, domain: Domain, registry: RunReader
) -> tuple[Path, Receipt] | None:
    """Where the node's own receipt belongs, and its verified successor; None if nothing changes."""
    if share.receipt is None:
        return None
    receipt = Receipt.from_bytes(share.receipt)
    record_id = receipt.record_id()
    release = release_directory(policy, record_id)
    if release is None:
        if receipt.record.node != policy.node:
            raise _foreign("the receipt is another node's")
        return None  # its owner has moved the release away
    try:
        current = read_receipt(release)
    except InputFileRefused as error:
        raise InputFileRefused(
            "the node's own release is damaged", hint=f"{error.message}; publish the run again"
        ) from error
    if replace(current, inclusion=None) != replace(receipt, inclusion=None):
        raise _foreign("the receipt is not the one that this node signed")
    if receipt == current or receipt.inclusion is None:
        return None
    path = staging / f"{TEMPORARY_PREFIX}{receipt_file_name(record_id)}"
    atomic_write(path, share.receipt)
    try:
        found = check_receipt(path, record_id, domain, registry)
    finally:
        path.unlink()
    if found.status is Status.CANNOT_CHECK:
        raise CannotCheck(
            f"the receipt cannot be checked yet: {found.detail}",
            hint="the coordinator sends it again; see whether the chain answers",
        )
    if found.status is Status.NOT_VALID:
        raise VerificationFailed(
            f"the receipt of this node's release is not valid: {found.detail}",
            hint="it is not kept; ask the coordinator for it again",
        )
    return release, receipt


def _check_acknowledgement(
    data: bytes, share: ShareRequest, coordinator: str, policy: Policy, domain: Domain
) -> None:
    """It is the coordinator's word about a release of this node in this round."""
    acknowledgement = SignedAcknowledgement.from_bytes(data)
    message = acknowledgement.message
    if acknowledgement.domain != domain:
        raise _foreign("the acknowledgement is for another registry")
    if (message.run_id, message.round) != (share.run_id, share.round):
        raise _foreign("the acknowledgement is of another run or round")
    if release_directory(policy, message.record_id) is None and (
        share.receipt is None or Receipt.from_bytes(share.receipt).record_id() != message.record_id
    ):
        raise _foreign("the acknowledgement is not about a release of this node")
    acknowledgement.check(coordinator)


def _damaged(folder: Path) -> InputFileRefused:
    return InputFileRefused(
        "what the node keeps of this round is damaged",
        hint=f"remove {folder}; the coordinator can send it again",
    )


def _foreign(reason: str) -> InputFileRefused:
    return InputFileRefused(reason, hint="it is not kept; ask the coordinator what happened")

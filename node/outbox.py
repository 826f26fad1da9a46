"""What may leave this node: its own finished, signed releases, and nothing else.

    found = find_release(policy, domain, run_id, round_number)
    files = read_outgoing(found, policy)

A release is finished once its directory stands in a run directory, for `publish` puts it there in
one rename. Before it goes out it is checked as a stranger would: a file that was damaged or
exchanged since it was signed stays here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from genkd.digest import sha256_bytes
from genkd.errors import InputFileRefused, RefusedByPolicy
from genkd.provenance import Policy as Trust
from genkd.provenance import verify
from genkd.provenance.bundle import BUNDLE_NAME
from genkd.provenance.receipt import Receipt
from genkd.provenance.release import (
    DIRECTORY_NAME,
    RECEIPT_NAME,
    STATEMENT_NAME,
    directory_name,
    read_receipt,
    read_release,
)
from genkd.provenance.statement import STUDENT_NAME
from genkd.provenance.typed_data import Domain
from genkd.run_directory import RELEASE_FOLDER
from node.policy import Policy

MAX_RELEASES = 10_000  # looked at for one question


@dataclass(frozen=True)
class FoundRelease:
    """A release of this node.

    Attributes:
        path: Its directory.
        receipt: Its receipt, as it was read.
    """

    path: Path
    receipt: Receipt

    @property
    def record_id(self) -> bytes:
        """Its record id, 32 bytes."""
        return self.receipt.record_id()


def find_release(
    policy: Policy, domain: Domain, run_id: bytes, round_number: int
) -> FoundRelease | None:
    """The node's release for a round, the newest if there are several.

    The newest is the one with the latest deadline: that is signed, and a file's time is not.

    Args:
        policy: Whose releases count, and where they lie.
        domain: The registry they must be for.
        run_id: 32 bytes.
        round_number: 0 to 2^32 - 1.

    Returns:
        It, or None if there is none.

    Raises:
        RefusedByPolicy: If the run is none of those that the node takes part in, or the release
            can no longer be recorded.
    """
    if run_id not in policy.run_ids:
        raise RefusedByPolicy(
            "policy: this node takes no part in the run", hint="add the run to policy.toml"
        )
    found = [
        FoundRelease(path, receipt)
        for path, receipt in _releases(policy)
        if receipt.domain == domain
        and receipt.record.node == policy.node
        and (receipt.record.run_id, receipt.record.round) == (run_id, round_number)
    ]
    if not found:
        return None
    newest = max(found, key=lambda one: (one.receipt.record.deadline, one.record_id))
    if newest.receipt.inclusion is None and newest.receipt.record.deadline < time.time():
        raise RefusedByPolicy(
            "the release for this round is past its deadline", hint="publish the run again"
        )
    return newest


def read_outgoing(found: FoundRelease, policy: Policy) -> dict[str, bytes]:
    """The four files of a release, checked.

    Raises:
        InputFileRefused: If it was damaged, exchanged or removed since it was found.
        RefusedByPolicy: If it is larger than the policy allows.
    """
    release = read_release(found.path)
    record = found.receipt.record
    files = {
        STUDENT_NAME: release.student,
        STATEMENT_NAME: release.statement,
        BUNDLE_NAME: release.bundle,
        RECEIPT_NAME: release.receipt,
    }
    if sum(map(len, files.values())) > policy.max_release_bytes:
        raise RefusedByPolicy(
            f"policy: the release is larger than {policy.max_release_bytes} bytes",
            hint="raise max_release_bytes in policy.toml, or publish a smaller student",
        )
    # What is verified on the disk is what was read: the two hashes tie them together.
    same = (sha256_bytes(release.student), sha256_bytes(release.statement))
    signed = verify(found.path, policy=Trust(found.receipt.domain)).signed
    receipt = Receipt.from_bytes(release.receipt)
    if (
        not signed
        or receipt.record != record
        or same
        != (
            record.file_hash.hex(),
            record.metadata_hash.hex(),
        )
    ):
        raise InputFileRefused(
            f"{found.path} is not the release that was signed", hint="publish the run again"
        )
    return files


def release_directory(policy: Policy, record_id: bytes) -> Path | None:
    """Where the release of a record lies in this node's run directories; None if it does not."""
    name = directory_name(record_id)
    return next((path for path in _directories(policy) if path.name == name), None)


def release_directories(policy: Policy) -> frozenset[Path]:
    """The directories in which releases of this node may lie, whatever is in them."""
    return frozenset(islice(_directories(policy), MAX_RELEASES))


def _releases(policy: Policy) -> Iterator[tuple[Path, Receipt]]:
    for path in islice(_directories(policy), MAX_RELEASES):
        with contextlib.suppress(InputFileRefused):  # somebody else's folder, or a damaged one
            yield path, read_receipt(path)


def _directories(policy: Policy) -> Iterator[Path]:
    for folder in policy.releases:
        for path in folder.glob(f"*/{RELEASE_FOLDER}/student-0x*"):
            if DIRECTORY_NAME.fullmatch(path.name):
                yield path

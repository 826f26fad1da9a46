"""A round on the chain: one Merkle root for the releases of many nodes, and a proof into each.

    committed = commit_round(client, releases, run_id, round_number, aggregate_hash)

Safe to repeat and to kill anywhere: the root follows from the releases alone, the registry takes
one root a round, and each receipt is old or new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contracts.registry import RegistryClient
from coordinator.recordable import fault_of_place, fault_of_record
from genkd.errors import InputFileRefused, UsageError, VerificationFailed
from genkd.provenance import Policy, verify
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.receipt import Inclusion, Receipt
from genkd.provenance.release import DIRECTORY_NAME, RECEIPT_NAME, read_receipt, replace_receipt


@dataclass(frozen=True)
class CommittedRound:
    """What committing left.

    Attributes:
        root: Of the Merkle tree, 32 bytes.
        block: The number of the block that holds it.
        transaction: Its transaction's hash, 32 bytes.
        releases: How many students it records.
    """

    root: bytes
    block: int
    transaction: bytes
    releases: int


def releases_in(paths: Sequence[Path]) -> list[Path]:
    """Release directories, and those in folders that hold them, each once.

    Raises:
        UsageError: If there is none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if (path / RECEIPT_NAME).exists():
            found[path.resolve()] = None
            continue
        inside = path.iterdir() if path.is_dir() else ()
        found |= dict.fromkeys(p.resolve() for p in inside if DIRECTORY_NAME.fullmatch(p.name))
    if not found:
        raise UsageError(
            "there is no release directory among the paths",
            hint="name student-0x... directories, or the folder they lie in",
        )
    return sorted(found)


def commit_round(
    client: RegistryClient,
    releases: Sequence[Path],
    run_id: bytes,
    round_number: int,
    aggregate_hash: bytes,
) -> CommittedRound:
    """Record releases by one root, wait until it is confirmed, and write each one its proof.

    Args:
        client: The registry, written to with the run's coordinator's key.
        releases: Release directories of this run and round.
        run_id: 32 bytes.
        round_number: 0 to 2^32 - 1.
        aggregate_hash: sha256 of the student merged from them; zero when there is none.

    Raises:
        VerificationFailed: If a release is not validly signed for this registry, run and round,
            or would be void on the chain. Nothing is committed then.
        RegistryRefused: If the round has another root already.
        KeyRefusedByRegistry: If the client's key is not the run's coordinator's.
        CannotCheck, Stopped: As `RegistryClient.await_round`.
        ResourceExhausted: If a receipt cannot be written.
    """
    committed = client.state.round(run_id, round_number).recorded_at != 0
    receipts = [_checked(client, path, run_id, round_number, committed) for path in releases]
    ids = [receipt.record_id() for receipt in receipts]
    tree = MerkleTree(ids)
    place = client.await_round(run_id, round_number, tree.root, len(ids), aggregate_hash)
    for path, receipt, record_id in zip(releases, receipts, ids, strict=True):
        inclusion = Inclusion(place.transaction, place.block, tree.proof(record_id))
        complete = replace(receipt, inclusion=inclusion)
        if complete != receipt:
            replace_receipt(path, complete)
    return CommittedRound(tree.root, place.block, place.transaction, len(ids))


def _checked(
    client: RegistryClient, path: Path, run_id: bytes, round_number: int, committed: bool
) -> Receipt:
    """The receipt of a release that the registry will find in order."""
    verification = verify(path, policy=Policy(client.domain))
    if not verification.signed:
        raise VerificationFailed(
            f"{path}: {verification.summary}", hint="ask its node for the release again"
        )
    receipt = read_receipt(path)
    if receipt != verification.receipt:
        raise InputFileRefused(f"{path} changed while it was read", hint="try again")
    fault = fault_of_place(receipt.record, run_id, round_number)
    if fault is None and not committed:  # else verifying tells whether it was in order then
        fault = fault_of_record(client.state, receipt)
    if fault is not None:
        raise _not_in_order(path, fault)
    return receipt


def _not_in_order(path: Path, reason: str) -> VerificationFailed:
    return VerificationFailed(
        f"{path} cannot be recorded in this round: {reason}",
        hint="leave it out, or ask its node for another; nothing was committed",
    )

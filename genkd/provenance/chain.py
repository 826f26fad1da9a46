"""What a verifier asks of a chain, and nothing more.

`contracts` implements `ChainReader` over JSON-RPC; `MemoryRegistry` is its twin for tests and for
trying things out. Neither this module nor any that imports it knows web3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from genkd.errors import CannotCheck, VerificationFailed
from genkd.provenance.record import ZERO_HASH, StudentRecord

T = TypeVar("T")


@dataclass(frozen=True)
class Verdict:
    """What the registry says of one record, at one block (`IStudentRegistry.Verdict`).

    Times are block times in Unix seconds, 0 for "never".

    Attributes:
        block: The block's number.
        record_id: The EIP-712 digest as the contract computed it, 32 bytes.
        profile_hash: Hash of the node profile enrolled with the signing key, 32 bytes; zero when
            the key is unknown.
        identity: The first key of the node behind the signing key; the zero address when unknown.
        enrolled_since: From when on the signing key counts, inclusive.
        enrolled_until: Up to when it counts, exclusive.
        registered_at: When it was registered by itself.
        committed_at: When the root of the round that provably holds it was committed.
        teacher_committed_at: When the identity committed to the teacher.
        recorded_at: Which of the two times counts.
        in_order: Whether at that time the deadline had not passed, the key was enrolled, and the
            teacher was committed.
        revoked_by_node: When the node's identity withdrew it.
        revoked_by_owner: When the registry's owner withdrew it.
        reason: The reason given with the withdrawal (`RevocationReason`, or a later number).
    """

    block: int
    record_id: bytes
    profile_hash: bytes
    identity: str
    enrolled_since: int
    enrolled_until: int
    registered_at: int
    committed_at: int
    teacher_committed_at: int
    recorded_at: int
    in_order: bool
    revoked_by_node: int
    revoked_by_owner: int
    reason: int


@dataclass(frozen=True)
class Answer:
    """The same question answered at two blocks of one chain.

    Attributes:
        confirmed: At the newest block that counts as final (the `finalized` tag, or N blocks deep).
        latest: At the newest block. A revocation or a removal is heeded from here, at once.
    """

    confirmed: Verdict
    latest: Verdict


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        timestamp: Unix seconds.
        transactions: The hashes of its transactions, 32 bytes each.
    """

    timestamp: int
    transactions: frozenset[bytes]


@dataclass(frozen=True)
class Entry:
    """What the registry says of a record id alone (single path only: a round keeps one root).

    Attributes:
        node: The signing key that recorded it.
        recorded_at: Unix second, never 0.
        node_counted: Whether that key was enrolled then, as known now.
        revoked: Whether its identity or the owner took it back.
    """

    node: str
    recorded_at: int
    node_counted: bool
    revoked: bool


class ChainReader(Protocol):
    """A trusted registry on a trusted chain, read-only.

    Every method raises `CannotCheck` when the chain is silent, slow, answers nonsense, answers too
    much, or contradicts itself; never anything else, and it never guesses.
    """

    def chain_id(self) -> int:
        """The chain id the endpoint itself reports (not the one it was asked to be)."""
        ...

    def fault_of_contract(self) -> str | None:
        """One line on why the code at the registry's address is not this project's; None if it is.

        The runtime code is compared with the compiled artifact, immutables masked, and the masked
        values (domain separator, chain id, address) with what they must be.
        """
        ...

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        """What the registry says of a record.

        Args:
            record: The record, whose id the contract computes itself.
            signature: The node's signature over the record id.
            proof: The Merkle proof into its round's root; empty on the single path.
        """
        ...

    def block(self, number: int) -> Block | None:
        """The block with this number on the current chain, None if there is none yet."""
        ...

    def entries(self, record_ids: Sequence[bytes]) -> Sequence[Entry | None]:
        """What the registry says of each record id alone, at the newest block; None if unknown."""
        ...


class AgreeingReaders:
    """Several endpoints of one chain, believed only as far as they agree.

    One endpoint that lies consistently cannot be told from an honest one; two that do not know of
    each other can be compared.

    Args:
        readers: At least one, each for the same registry.
    """

    def __init__(self, readers: Sequence[ChainReader]) -> None:
        if not readers:
            raise ValueError("at least one reader is needed")
        self._readers = tuple(readers)

    def _ask(self, question: Callable[[ChainReader], T], what: str) -> T:
        answers = [question(reader) for reader in self._readers]
        if any(answer != answers[0] for answer in answers):
            raise CannotCheck(
                f"the endpoints disagree about {what}",
                hint="one lies or lags behind: ask again, or ask others",
            )
        return answers[0]

    def chain_id(self) -> int:
        """The chain id that all endpoints report."""
        return self._ask(lambda reader: reader.chain_id(), "the chain")

    def fault_of_contract(self) -> str | None:
        """As `ChainReader`, the same from all."""
        return self._ask(lambda reader: reader.fault_of_contract(), "the contract")

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        """As `ChainReader`; heads may differ by a block, what they say of the record may not."""

        def ask(reader: ChainReader) -> Answer:
            answer = reader.look_up(record, signature, proof)
            return Answer(replace(answer.confirmed, block=0), replace(answer.latest, block=0))

        return self._ask(ask, "the record")

    def block(self, number: int) -> Block | None:
        """As `ChainReader`, the same from all."""
        return self._ask(lambda reader: reader.block(number), f"block {number}")

    def entries(self, record_ids: Sequence[bytes]) -> Sequence[Entry | None]:
        """As `ChainReader`, the same from all."""
        return self._ask(lambda reader: list(reader.entries(record_ids)), "the parents")


def _in_order_at(verdict: Verdict, time: int, deadline: int) -> bool:
    return (
        0 < time <= deadline
        and verdict.enrolled_since <= time < verdict.enrolled_until
        and 0 < verdict.teacher_committed_at <= time
    )


def require_sense(verdict: Verdict, record: StudentRecord, record_id: bytes) -> None:
    """Refuse an answer that is about something else or contradicts itself.

    Raises:
        CannotCheck: If the endpoint lies, or its state is broken.
    """
    times = (verdict.registered_at, verdict.committed_at)
    deadline = record.deadline
    sensible = (
        verdict.record_id == record_id
        and verdict.recorded_at in (*times, 0)
        and bool(verdict.recorded_at) == any(times)
        and verdict.in_order == any(_in_order_at(verdict, time, deadline) for time in times)
        and verdict.in_order == _in_order_at(verdict, verdict.recorded_at, deadline)
    )
    if not sensible:
        raise CannotCheck(
            "the endpoint's answer about the record contradicts itself",
            hint="it is broken or lies; ask another endpoint",
        )


def require_order(verdict: Verdict, record: StudentRecord, profile_hash: bytes) -> None:
    """Say what was not in order when the record was made.

    Raises:
        VerificationFailed: If anything was not.
    """
    time = verdict.recorded_at
    if verdict.profile_hash in (ZERO_HASH, b"") or not verdict.enrolled_since:
        raise _refused(f"the node {record.node} was never enrolled")
    if verdict.profile_hash != profile_hash:
        raise _refused("the profile is not the one the node was enrolled with")
    if time > record.deadline:
        raise _refused("it was recorded after its deadline")
    if not verdict.enrolled_since <= time < verdict.enrolled_until:
        raise _refused(f"the node {record.node} was not enrolled when it was recorded, at {time}")
    if not 0 < verdict.teacher_committed_at <= time:
        raise _refused("its teacher was not committed before it was recorded")


def _refused(reason: str) -> VerificationFailed:
    return VerificationFailed(reason, hint="do not use it; ask the node for its release again")

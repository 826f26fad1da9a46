"""A registry in memory: the rules of `StudentRegistry.sol`, for tests and for trying things out.

    chain = MemoryChain(Domain(31337, "0x..."), owner="0x...")
    chain.add_node(profile)
    chain.register(record, signature)
    verify(path, policy=Policy(chain.domain), chain=chain)

It writes as the contract does, with the same refusals (the owner's calls are taken to be the
owner's), and answers as a `ChainReader`. Each call
that writes is a block of its own, a second after the last; a block is confirmed once
`confirmations` more follow it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from genkd.errors import KeyOrSignatureError
from genkd.provenance.chain import Answer, Block, Entry, Verdict
from genkd.provenance.merkle import verify_proof
from genkd.provenance.profile import NodeProfile
from genkd.provenance.record import (
    ZERO_HASH,
    Revocation,
    Rotation,
    StudentRecord,
    TeacherMessage,
    key_hash,
)
from genkd.provenance.secp256k1 import recover_address
from genkd.provenance.typed_data import Domain, keccak256

NEVER = 2**48 - 1
NOBODY = "0x" + "0" * 40
GENESIS = 1_700_000_000


class Sender(Protocol):
    """Who sends a transaction."""

    @property
    def address(self) -> str:
        """The account."""
        ...


class Reverted(Exception):
    """The contract would refuse this call; the message is its custom error's name."""


@dataclass
class _Node:
    identity: str
    since: int
    until: int
    profile_hash: bytes


@dataclass
class _State:
    """What the contract stores."""

    nodes: dict[str, _Node] = field(default_factory=dict)
    next_keys: dict[str, bytes] = field(default_factory=dict)
    runs: dict[bytes, str] = field(default_factory=dict)
    rounds: dict[tuple[bytes, int], tuple[bytes, int]] = field(default_factory=dict)
    records: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    teachers: dict[tuple[bytes, str], int] = field(default_factory=dict)
    revocations: dict[tuple[bytes, str], tuple[str, int, int]] = field(default_factory=dict)


class MemoryChain:
    """One chain with one registry.

    Args:
        domain: Its chain id and the registry's address.
        owner: Who may enrol nodes and open runs.
        confirmations: How many blocks must follow a block before it counts as confirmed.
    """

    def __init__(self, domain: Domain, owner: str, confirmations: int = 0) -> None:
        self.domain = domain
        self.owner = owner
        self.confirmations = confirmations
        self._states = [_State()]
        self._times = [GENESIS]

    # --- the chain ---

    @property
    def now(self) -> int:
        """The newest block's time."""
        return self._times[-1]

    @property
    def height(self) -> int:
        """The newest block's number."""
        return len(self._states) - 1

    def mine(self, seconds: int = 1) -> _State:
        """Append a block that many seconds later and return its state."""
        self._states.append(copy.deepcopy(self._states[-1]))
        self._times.append(self.now + seconds)
        return self._states[-1]

    def transaction(self, number: int) -> bytes:
        """The hash of the one transaction of a block."""
        return keccak256(f"{self._times[number]} {number}".encode())

    def reorganise(self, depth: int) -> None:
        """Replace the newest blocks by as many empty ones."""
        del self._states[-depth:], self._times[-depth:]
        for _ in range(depth):
            self.mine(seconds=2)

    # --- what the contract lets be written ---

    def add_node(self, profile: NodeProfile) -> None:
        """`addNode`, with the hashes of a profile."""
        self._enrol(profile, profile.node)

    def remove_node(self, key: str, until: int) -> None:
        """`removeNode`."""
        node = self._states[-1].nodes.get(key)
        if node is None:
            raise Reverted("NotANode")
        if until > self.now + 1 or until >= node.until:
            raise Reverted("NotEarlier")
        self.mine().nodes[key].until = until

    def rotate(self, rotation: Rotation, profile: NodeProfile, signature: bytes) -> None:
        """`rotate`."""
        if rotation.new_key in self._states[-1].nodes:
            raise Reverted("AlreadyThere")
        self._in_time(rotation.deadline)
        identity = self._identity(rotation.old_key)
        if key_hash(rotation.new_key) != self._states[-1].next_keys[identity]:
            raise Reverted("WrongNextKey")
        self._signed(rotation.new_key, rotation.digest(self.domain), signature)
        self._enrol(profile, identity)
        self._states[-1].nodes[rotation.old_key].until = self.now

    def open_run(self, run_id: bytes, coordinator: str) -> None:
        """`openRun`."""
        if run_id in self._states[-1].runs:
            raise Reverted("AlreadyThere")
        self.mine().runs[run_id] = coordinator

    def commit_teacher(self, message: TeacherMessage, signature: bytes) -> None:
        """`commitTeacher`."""
        if (message.commitment, self._known(message.node)) in self._states[-1].teachers:
            raise Reverted("AlreadyThere")
        self._in_time(message.deadline)
        identity = self._identity(message.node)
        self._signed(message.node, message.digest(self.domain), signature)
        state = self.mine()
        state.teachers[message.commitment, identity] = self.now

    def register(self, record: StudentRecord, signature: bytes) -> bytes:
        """`register`; returns the record id."""
        record_id = record.digest(self.domain)
        state = self._states[-1]
        if record_id in state.records:
            raise Reverted("AlreadyThere")
        self._in_time(record.deadline)
        identity = self._identity(record.node)
        if record.run_id not in state.runs:
            raise Reverted("UnknownRun")
        if (record.teacher_commitment, identity) not in state.teachers:
            raise Reverted("TeacherNotCommitted")
        self._signed(record.node, record_id, signature)
        state = self.mine()
        state.records[record_id] = (record.node, self.now)
        return record_id

    def commit_round(self, run_id: bytes, round_number: int, root: bytes, sender: Sender) -> None:
        """`commitRound`."""
        if self._states[-1].runs.get(run_id) != sender.address:
            raise Reverted("NotCoordinator")
        if (run_id, round_number) in self._states[-1].rounds:
            raise Reverted("AlreadyThere")
        state = self.mine()
        state.rounds[run_id, round_number] = (root, self.now)

    def revoke(self, message: Revocation, signature: bytes) -> None:
        """`revokeFor`."""
        known = self._known(message.node)
        if known and self._withdrawn_at(self._states[-1], message.record_id, known)[0]:
            raise Reverted("AlreadyThere")
        identity = self._identity(message.node)
        self._signed(message.node, message.digest(self.domain), signature)
        self._revoke(message.record_id, identity, message.node, message.reason)

    def revoke_as_owner(self, record_id: bytes, reason: int) -> None:
        """`revokeAsOwner`."""
        self._revoke(record_id, NOBODY, self.owner, reason)

    def _revoke(self, record_id: bytes, by: str, key: str, reason: int) -> None:
        if self._withdrawn_at(self._states[-1], record_id, by)[0]:
            raise Reverted("AlreadyThere")
        state = self.mine()
        state.revocations[record_id, by] = (key, self.now, reason)

    def _enrol(self, profile: NodeProfile, identity: str) -> None:
        if profile.node in self._states[-1].nodes:
            raise Reverted("AlreadyThere")
        state = self.mine()
        state.nodes[profile.node] = _Node(identity, self.now, NEVER, profile.profile_hash())
        state.next_keys[identity] = profile.message.next_key_hash

    def _in_time(self, deadline: int) -> None:
        if self.now + 1 > deadline:
            raise Reverted("Expired")

    def _known(self, key: str) -> str | None:
        """The identity of a key, whether or not it still counts."""
        node = self._states[-1].nodes.get(key)
        return None if node is None else node.identity

    def _identity(self, key: str) -> str:
        node = self._states[-1].nodes.get(key)
        if node is None or not node.since <= self.now + 1 < node.until:
            raise Reverted("NotANode")
        return node.identity

    def _signed(self, signer: str, digest: bytes, signature: bytes) -> None:
        try:
            genuine = recover_address(digest, signature) == signer
        except KeyOrSignatureError as error:
            raise Reverted("BadSignature") from error
        if not genuine:
            raise Reverted("BadSignature")

    # --- what a verifier asks (`ChainReader`) ---

    def chain_id(self) -> int:
        """The chain id."""
        return self.domain.chain_id

    def fault_of_contract(self) -> str | None:
        """None: the rules above are the contract's."""
        return None

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        """The verdict at the confirmed and at the newest block."""
        confirmed = max(self.height - self.confirmations, 0)
        return Answer(
            self._verdict(confirmed, record, signature, proof),
            self._verdict(self.height, record, signature, proof),
        )

    def block(self, number: int) -> Block | None:
        """A block, with its one transaction."""
        if not 0 <= number <= self.height:
            return None
        return Block(self._times[number], frozenset({self.transaction(number)}))

    def entries(self, record_ids: Sequence[bytes]) -> Sequence[Entry | None]:
        """What is known of each id alone."""
        return [self._entry(one) for one in record_ids]

    def _entry(self, record_id: bytes) -> Entry | None:
        state = self._states[-1]
        if record_id not in state.records:
            return None
        key, recorded_at = state.records[record_id]
        node = state.nodes[key]
        counted = node.since <= recorded_at < node.until
        withdrawals = (self._withdrawn_at(state, record_id, by) for by in (node.identity, NOBODY))
        return Entry(key, recorded_at, counted, any(when for when, _ in withdrawals))

    def _withdrawn_at(self, state: _State, record_id: bytes, by: str) -> tuple[int, int]:
        """Time and reason of the withdrawal in force, zeros when there is none."""
        key, when, reason = state.revocations.get((record_id, by), ("", 0, 0))
        node = state.nodes.get(key)
        in_force = by == NOBODY or (node is not None and node.since <= when < node.until)
        return (when, reason) if when and in_force else (0, 0)

    def _verdict(
        self, number: int, record: StudentRecord, signature: bytes, proof: Sequence[bytes]
    ) -> Verdict:
        state = self._states[number]
        record_id = record.digest(self.domain)
        node = state.nodes.get(record.node, _Node(NOBODY, 0, 0, ZERO_HASH))
        registered = state.records.get(record_id, ("", 0))[1]
        committed = self._committed_at(state, record, record_id, signature, proof)
        teacher = state.teachers.get((record.teacher_commitment, node.identity), 0)

        def in_order(time: int) -> bool:
            enrolled = node.since <= time < node.until
            return 0 < time <= record.deadline and enrolled and 0 < teacher <= time

        good = sorted(time for time in (registered, committed) if in_order(time))
        by_node = self._withdrawn_at(state, record_id, node.identity)
        by_owner = self._withdrawn_at(state, record_id, NOBODY)
        return Verdict(
            block=number,
            record_id=record_id,
            profile_hash=node.profile_hash,
            identity=node.identity,
            enrolled_since=node.since,
            enrolled_until=node.until,
            registered_at=registered,
            committed_at=committed,
            teacher_committed_at=teacher,
            recorded_at=good[0] if good else registered or committed,
            in_order=bool(good),
            revoked_by_node=by_node[0] if node.identity != NOBODY else 0,
            revoked_by_owner=by_owner[0],
            reason=by_node[1] or by_owner[1],
        )

    def _committed_at(
        self,
        state: _State,
        record: StudentRecord,
        record_id: bytes,
        signature: bytes,
        proof: Sequence[bytes],
    ) -> int:
        root, when = state.rounds.get((record.run_id, record.round), (b"", 0))
        if not when or not verify_proof(root, record_id, proof):
            return 0
        try:
            self._signed(record.node, record_id, signature)
        except Reverted:
            return 0
        return when

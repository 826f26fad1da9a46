"""A registry in memory, written to and read as the real one over JSON-RPC is.

    client = MemoryClient(MemoryRegistry(domain, owner), keys)
    client.await_record(record, signature)
    client.state.run(run_id).coordinator

`MemoryRegistry` answers as `contracts.registry_state.RegistryState`, `MemoryClient` writes as
`contracts.registry.RegistryClient`, with the same refusals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from contracts.account import Written
from contracts.chain_reader import Head
from contracts.refusals import refusal
from contracts.registry_state import Node, Placement, Round, Run
from genkd.errors import CannotCheck
from genkd.provenance.chain import Answer, Block, Entry
from genkd.provenance.memory_chain import NOBODY, MemoryChain, Reverted
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import NodeProfile
from genkd.provenance.record import (
    ZERO_HASH,
    ProfileMessage,
    Revocation,
    StudentRecord,
    TeacherMessage,
)
from genkd.provenance.typed_data import Domain, keccak256


class MemoryRegistry(MemoryChain):
    """`MemoryChain`, which also tells what writers ask.

    Attributes:
        unreachable: Every question ends in `CannotCheck` while it is set.
    """

    def __init__(self, domain: Domain, owner: str, confirmations: int = 0) -> None:
        super().__init__(domain, owner, confirmations)
        self.unreachable = False
        self._counts: dict[tuple[bytes, int], int] = {}

    def _answering(self) -> None:
        if self.unreachable:
            raise CannotCheck(
                "http://127.0.0.1:8545 does not answer: connection refused",
                hint="is the chain running?",
            )

    def chain_id(self) -> int:
        self._answering()
        return super().chain_id()

    def fault_of_contract(self) -> str | None:
        self._answering()
        return super().fault_of_contract()

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        self._answering()
        return super().look_up(record, signature, proof)

    def block(self, number: int) -> Block | None:
        self._answering()
        return super().block(number)

    def entries(self, record_ids: Sequence[bytes]) -> Sequence[Entry | None]:
        self._answering()
        return super().entries(record_ids)

    # --- `RegistryState` ---

    def head(self, which: str) -> Head:
        self._answering()
        return Head(self.height, "0x" + self.transaction(self.height).hex(), self.now)

    def node(self, key: str) -> Node:
        self._answering()
        found = self._states[-1].nodes.get(key)
        if found is None:
            return Node(NOBODY, 0, 0, ZERO_HASH)
        return Node(found.identity, found.since, found.until, found.profile_hash)

    def teacher_committed_at(self, commitment: bytes, identity: str) -> int:
        self._answering()
        return self._states[-1].teachers.get((commitment, identity), 0)

    def run(self, run_id: bytes) -> Run:
        self._answering()
        coordinator = self._states[-1].runs.get(run_id)
        return Run(coordinator or NOBODY, 1 if coordinator else 0, ZERO_HASH)

    def round(self, run_id: bytes, number: int, *, confirmed: bool = False) -> Round:
        self._answering()
        root, when = self._state_at(confirmed).rounds.get((run_id, number), (ZERO_HASH, 0))
        return Round(root, when, self._counts.get((run_id, number), 0) if when else 0)

    def is_registered(self, record_id: bytes, *, confirmed: bool = False) -> bool:
        self._answering()
        return record_id in self._state_at(confirmed).records

    def registration(self, record_id: bytes) -> Placement:
        self._answering()
        return self._placement(self._states[-1].records.get(record_id, ("", 0))[1])

    def round_placement(self, run_id: bytes, number: int) -> Placement:
        return self._placement(self.round(run_id, number).recorded_at)

    def _state_at(self, confirmed: bool):  # type: ignore[no-untyped-def] # its type is private
        number = max(self.height - self.confirmations, 0) if confirmed else self.height
        return self._states[number]

    def _placement(self, time: int) -> Placement:
        if time not in self._times:
            raise CannotCheck("it is not on the chain", hint="")
        number = self._times.index(time)
        return Placement(self.transaction(number), number)


class MemoryClient:
    """`RegistryClient` on a `MemoryRegistry`.

    Args:
        state: The registry.
        signer: Who sends.
    """

    def __init__(self, state: MemoryRegistry, signer: NodeKeys) -> None:
        self.state = state
        self.domain = state.domain
        self.signer = signer

    def _write(self, call: Callable[[], object]) -> Written:
        self.state._answering()
        try:
            call()
        except Reverted as error:
            if str(error) == "AlreadyThere":
                return Written()
            raise refusal(str(error)) from error
        height = self.state.height
        return Written(self.state.transaction(height), height, 70_000)

    def add_node(self, key: str, next_key_hash: bytes, profile_hash: bytes) -> Written:
        profile = _Hashes(key, next_key_hash, profile_hash)
        return self._write(lambda: self.state.add_node(profile))  # type: ignore[arg-type]

    def enrol(self, profile: NodeProfile) -> Written:
        """`add_node` with what a profile says."""
        return self.add_node(profile.node, profile.message.next_key_hash, profile.profile_hash())

    def remove_node(self, key: str, until: int) -> Written:
        return self._write(lambda: self.state.remove_node(key, until))

    def open_run(self, run_id: bytes, coordinator: str, config_hash: bytes) -> Written:
        return self._write(lambda: self.state.open_run(run_id, coordinator))

    def revoke_as_owner(self, record_id: bytes, reason: int) -> Written:
        return self._write(lambda: self.state.revoke_as_owner(record_id, reason))

    def commit_teacher(self, message: TeacherMessage, signature: bytes) -> Written:
        return self._write(lambda: self.state.commit_teacher(message, signature))

    def register(self, record: StudentRecord, signature: bytes) -> Written:
        return self._write(lambda: self.state.register(record, signature))

    def revoke(self, message: Revocation, signature: bytes) -> Written:
        return self._write(lambda: self.state.revoke(message, signature))

    def commit_round(
        self, run_id: bytes, number: int, root: bytes, count: int, aggregate_hash: bytes
    ) -> Written:
        there = self.state.round(run_id, number)
        if there.recorded_at and there.root != root:
            raise refusal("AlreadyThere")
        written = self._write(lambda: self.state.commit_round(run_id, number, root, self.signer))
        self.state._counts.setdefault((run_id, number), count)
        return written

    def await_record(
        self, record: StudentRecord, signature: bytes, *, patience: float = 1800.0
    ) -> Placement:
        self.register(record, signature)
        self.state._answering()
        for _ in range(self.state.confirmations):
            self.state.mine()
        return self.state.registration(record.digest(self.domain))

    def await_round(
        self,
        run_id: bytes,
        number: int,
        root: bytes,
        count: int,
        aggregate_hash: bytes,
        *,
        patience: float = 1800.0,
    ) -> Placement:
        self.commit_round(run_id, number, root, count, aggregate_hash)
        for _ in range(self.state.confirmations):
            self.state.mine()
        return self.state.round_placement(run_id, number)


class _Hashes:
    """What the registry is told of a profile."""

    def __init__(self, node: str, next_key_hash: bytes, profile_hash: bytes) -> None:
        self.node = node
        self.message = ProfileMessage(node, keccak256(b""), ZERO_HASH, next_key_hash)
        self._profile_hash = profile_hash

    def profile_hash(self) -> bytes:
        return self._profile_hash

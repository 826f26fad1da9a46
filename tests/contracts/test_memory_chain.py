"""The registry in memory and the one on the chain give the same answers to the same games."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from contracts.account import LocalSigner
from contracts.refusals import KeyRefusedByRegistry, RegistryRefused
from genkd.provenance.chain import Verdict
from genkd.provenance.memory_chain import MemoryChain, Reverted
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.record import ZERO_HASH, StudentRecord
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.typed_data import keccak256

Federation = Any  # conftest.Federation
MOVES = 25


class Twins:
    """A federation on a real chain and its twin in memory, whose clocks run alike."""

    def __init__(self, federation: Federation) -> None:
        self.real = federation
        self.memory = MemoryChain(federation.domain, address_of(federation.owner))
        self.deadline = federation.now() + 10_000_000
        owner = federation.client(federation.owner)
        self.keys = [0x7001, 0x7002, 0x7003]
        for secret, following in zip(self.keys, [*self.keys[1:], None], strict=True):
            profile = federation.profile(secret, following)
            if secret == self.keys[1]:
                continue  # the first one's next key
            self._tick()
            owner.add_node(profile.node, profile.message.next_key_hash, profile.profile_hash())
            self.memory.add_node(profile)
        self._tick()
        run, coordinator = keccak256(b"twins"), address_of(federation.coordinator)
        owner.open_run(run, coordinator, ZERO_HASH)
        self.memory.open_run(run, coordinator)
        self.run = run
        self.offset = federation.now() - self.memory.now

    def _tick(self) -> None:
        """Both chains make a block a second."""
        self.real.rpc.ask("evm_setNextBlockTimestamp", hex(self.real.now() + 1))

    def play(self, real: Callable[[], object], memory: Callable[[], object]) -> str:
        """The same move on both; how it ended, which must be the same."""
        self._tick()
        outcomes = []
        for move in (real, memory):
            try:
                done = move()
                there = getattr(done, "already_there", False)
                outcomes.append("AlreadyThere" if there else "done")
            except (RegistryRefused, KeyRefusedByRegistry) as error:
                outcomes.append(error.reason)
            except Reverted as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
        assert self.real.now() - self.memory.now == self.offset, "the clocks run alike"
        return outcomes[0]

    def student(self, secret: int, number: int) -> StudentRecord:
        return self.real.student(
            secret, run_id=self.run, round=number % 4, deadline=self.deadline + number
        )

    def verdicts(
        self, record: StudentRecord, signature: bytes, proof: tuple[bytes, ...]
    ) -> tuple[dict[str, object], dict[str, object]]:
        real = self.real.client(self.real.owner).state.look_up(record, signature, proof).latest
        memory = self.memory.look_up(record, signature, proof).latest
        return self._plain(real, 0), self._plain(memory, self.offset)

    @staticmethod
    def _plain(verdict: Verdict, offset: int) -> dict[str, object]:
        """Without the block's number, and with times by one clock."""
        values = dict(vars(verdict))
        del values["block"]
        for name, value in values.items():
            if isinstance(value, int) and not isinstance(value, bool) and 1e9 < value < 1e11:
                values[name] = value + offset
        return values


@pytest.mark.parametrize("seed", [3, 10, 37])
def test_random_games_end_alike_on_the_chain_and_in_memory(
    federation: Federation, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    twins = Twins(federation)
    owner, memory = federation.client(federation.owner), twins.memory
    coordinator = federation.client(federation.coordinator)
    students = {i: twins.student(chance.choice(twins.keys), i) for i in range(8)}
    signatures = {i: federation.sign(chance.choice(twins.keys), s) for i, s in students.items()}
    for i in range(0, 8, 2):  # half of them are signed by the right key
        secret = next(key for key in twins.keys if address_of(key) == students[i].node)
        signatures[i] = federation.sign(secret, students[i])
    proofs: dict[int, tuple[bytes, ...]] = {}

    def teacher() -> str:
        key = chance.choice(twins.keys)
        message = federation.teacher(key)
        signature = federation.sign(key, message)
        return twins.play(
            lambda: owner.commit_teacher(message, signature),
            lambda: memory.commit_teacher(message, signature),
        )

    def register() -> str:
        i = chance.choice(list(students))
        return twins.play(
            lambda: owner.register(students[i], signatures[i]),
            lambda: memory.register(students[i], signatures[i]),
        )

    def commit_round() -> str:
        number = chance.randrange(4)
        ids = {i: s.digest(federation.domain) for i, s in students.items() if s.round == number}
        tree = MerkleTree(list(ids.values()))
        sender = LocalSigner(federation.coordinator)
        outcome = twins.play(
            lambda: coordinator.commit_round(twins.run, number, tree.root, len(ids), ZERO_HASH),
            lambda: memory.commit_round(twins.run, number, tree.root, sender),
        )
        proofs.update({i: tree.proof(one) for i, one in ids.items()})
        return outcome

    def revoke() -> str:
        i, key = chance.choice(list(students)), chance.choice(twins.keys)
        message = federation.revocation(key, students[i].digest(federation.domain), i)
        signature = federation.sign(key, message)
        return twins.play(
            lambda: owner.revoke(message, signature), lambda: memory.revoke(message, signature)
        )

    def rotate() -> str:
        rotation = federation.rotation(*twins.keys)
        profile = federation.profile(*twins.keys[1:])
        signature = federation.sign(twins.keys[1], rotation)
        return twins.play(
            lambda: owner.rotate(rotation, signature),
            lambda: memory.rotate(rotation, profile, signature),
        )

    def remove() -> str:
        key = address_of(chance.choice(twins.keys))
        ago = chance.choice([0, 3, 10])
        until = federation.now() - ago
        if owner.state.node(key).until == until:
            return "skipped"  # the client tells that it is there; the contract has no such word
        return twins.play(
            lambda: owner.remove_node(key, until),
            lambda: memory.remove_node(key, until - twins.offset),
        )

    moves = [teacher] * 3 + [register] * 8 + [commit_round] * 3 + [revoke] * 3 + [rotate, remove]
    ended = set()
    for move in range(MOVES):
        ended.add(chance.choice(moves)())
        for i, record in students.items() if move % 5 == 4 else ():
            real, imagined = twins.verdicts(record, signatures[i], proofs.get(i, ()))
            assert real == imagined
    assert {"done", "AlreadyThere", "NotANode"} <= ended

"""The coordinator killed by SIGKILL again and again, on a real chain: the round ends right."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.account import Written
from contracts.anvil import Anvil, start_anvil
from contracts.development_chain import fund
from contracts.registry import RegistryClient, deploy
from contracts.registry_state import RegistryState
from genkd.provenance import Domain, Policy, secp256k1, verify
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import NodeProfile
from node.inbox import shared_students
from tests.federation import memory_federation
from tests.federation.memory_rounds import Rounds
from tests.kill_points import FILES_PUT_IN_PLACE, TRANSACTIONS, killed_at

MOST_CHILDREN = 60


class AnvilState(RegistryState):
    """A registry on Anvil, with what the tests ask of a `MemoryRegistry`."""

    @property
    def now(self) -> int:
        return self.head("latest").timestamp


class AnvilClient(RegistryClient):
    """A client that can always pay."""

    def __init__(self, state: AnvilState, signer: NodeKeys) -> None:
        fund(state.rpc_url, signer.address)
        super().__init__(state.rpc_url, state.domain, signer=signer, confirmations=0)

    def enrol(self, profile: NodeProfile) -> Written:
        return self.add_node(profile.node, profile.message.next_key_hash, profile.profile_hash())


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with start_anvil() as chain:
        yield chain


@pytest.fixture
def rounds(anvil: Anvil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """Two nodes and a coordinator, their registry on Anvil."""
    owner = memory_federation.node_keys(memory_federation.COORDINATOR)
    fund(anvil.rpc_url, owner.address)
    domain, _ = deploy(anvil.rpc_url, anvil.chain_id, owner, owner=owner.address)

    def registry(_: Domain, __: str, confirmations: int) -> AnvilState:
        state = AnvilState(anvil.rpc_url, domain, confirmations=confirmations)
        state.rpc_url = anvil.rpc_url  # type: ignore[attr-defined]
        return state

    monkeypatch.setattr(memory_federation, "MemoryRegistry", registry)
    monkeypatch.setattr(memory_federation, "MemoryClient", AnvilClient)
    monkeypatch.setattr(memory_federation, "REGISTRY", domain.contract)
    monkeypatch.setattr(memory_federation, "CHAIN_ID", anvil.chain_id)
    monkeypatch.setattr(secp256k1, "_recover", functools.cache(secp256k1._recover))
    federation = memory_federation.in_memory(tmp_path, monkeypatch)
    return Rounds(federation, tmp_path / "coordinator")


def test_killed_every_few_steps_the_round_ends_with_each_release_recorded_once(
    rounds: Rounds,
) -> None:
    def work() -> None:
        with rounds.federation.grid() as grid:
            rounds.run(grid)

    kills = 0
    while killed_at(4 + kills % 3, work, (*FILES_PUT_IN_PLACE, TRANSACTIONS)):
        kills += 1
        assert kills < MOST_CHILDREN
    assert kills >= 3
    rounds.assert_recorded_once(members=2)
    (merged,) = rounds.merged()
    chain = rounds.federation.chain
    folders = [path.parent for path in rounds.folder.glob("*/0x*/round-*/student-0x*")]
    verification = verify(merged, policy=Policy(chain.domain), chain=chain, parents_in=folders)
    assert verification.summary == "valid"
    for node in rounds.federation.nodes:
        assert max(student.round for student in shared_students(node.membership)) == 1

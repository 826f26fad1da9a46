"""A chain that forgets its last blocks: a killed Anvil loses a second, a public chain reorganises.

Anvil is set back to what it was before the round; the same command must record everything again.
"""

from __future__ import annotations

import pytest

from contracts.json_rpc import JsonRpc
from coordinator.federation_run import FederationRun
from coordinator.round_closing import RoundClosing
from genkd.provenance import Policy, verify
from node.inbox import shared_students
from tests.federation import test_killed_coordinator
from tests.federation.memory_federation import files_of, receipt_of
from tests.federation.memory_rounds import Killed, Rounds

anvil = test_killed_coordinator.anvil
rounds = test_killed_coordinator.rounds


@pytest.fixture
def chain(rounds: Rounds) -> JsonRpc:
    return JsonRpc(rounds.federation.chain.rpc_url)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("step", "name"),
    [(RoundClosing, "_all_verified"), (RoundClosing, "_release"), (FederationRun, "_share")],
    ids=["before the root is verified", "before the student is signed", "before it is shared"],
)
def test_what_was_recorded_and_forgotten_is_recorded_again(
    rounds: Rounds, chain: JsonRpc, step: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, before = FederationRun._collect, []

    def collected(self: FederationRun, *arguments: object) -> object:
        decision = collect(self, *arguments)  # type: ignore[arg-type]
        before.append(chain.ask("evm_snapshot"))
        return decision

    def cut(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, rounds.federation.grid() as grid:
        patch.setattr(FederationRun, "_collect", collected)
        patch.setattr(step, name, cut)
        with pytest.raises(Killed):
            rounds.run(grid)
    assert chain.ask("evm_revert", before[0])
    assert not rounds.federation.chain.round(rounds.federation.run_id, 1).recorded_at
    with rounds.federation.grid() as grid:
        rounds.run(grid)
    assert_valid_everywhere(rounds, 1)


@pytest.mark.parametrize("more", [0, 1], ids=["the same command", "one round more"])
def test_a_shared_round_that_was_forgotten_is_recorded_and_shared_again(
    rounds: Rounds, chain: JsonRpc, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, before = FederationRun._collect, []

    def collected(self: FederationRun, *arguments: object) -> object:
        decision = collect(self, *arguments)  # type: ignore[arg-type]
        before.append(chain.ask("evm_snapshot"))
        return decision

    with monkeypatch.context() as patch, rounds.federation.grid() as grid:
        patch.setattr(FederationRun, "_collect", collected)
        rounds.run(grid)
    (merged,) = rounds.merged()
    old, signed = files_of(merged), receipt_of(merged)
    assert chain.ask("evm_revert", before[0])
    assert not rounds.federation.chain.round(rounds.federation.run_id, 1).recorded_at
    chain.ask("anvil_mine", "0x3")  # so that no block comes to lie where it was
    with rounds.federation.grid() as grid:
        rounds.run(grid, rounds=1 + more)
    assert rounds.merged() == [merged]
    new, receipt = files_of(merged), receipt_of(merged)
    assert new.pop("receipt.json") != old.pop("receipt.json")
    assert new == old
    assert receipt.signature == signed.signature
    for number in range(1, 2 + more):
        assert_valid_everywhere(rounds, number)


def assert_valid_everywhere(rounds: Rounds, number: int) -> None:
    """The coordinator's and each node's copy of a round's student are valid, as `verify` says."""
    rounds.assert_recorded_once(number, members=2)
    registry = rounds.federation.chain
    folders = [path.parent for path in rounds.folder.glob("*/0x*/round-*/student-0x*")]
    policy = Policy(registry.domain)
    verification = verify(
        rounds.merged(number)[0], policy=policy, chain=registry, parents_in=folders
    )
    assert verification.summary == "valid"
    for node in rounds.federation.nodes:
        (kept,) = [one for one in shared_students(node.membership) if one.round == number]
        assert verify(kept.path, policy=policy, chain=registry).summary == "valid"

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
    rounds.assert_recorded_once(members=2)
    registry = rounds.federation.chain
    folders = [path.parent for path in rounds.folder.glob("*/0x*/round-*/student-0x*")]
    verification = verify(
        rounds.merged()[0], policy=Policy(registry.domain), chain=registry, parents_in=folders
    )
    assert verification.summary == "valid"
    for node in rounds.federation.nodes:
        assert max(student.round for student in shared_students(node.membership)) == 1

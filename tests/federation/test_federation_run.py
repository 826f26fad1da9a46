"""Rounds on the in-process grid: whole, interrupted, short of nodes, with hostile ones."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from contracts.exchange import COLLECT, SHARE, CollectReply
from coordinator import round_closing, store_file
from coordinator.merged_release import ReleasePress
from coordinator.run_archive import RunArchive
from coordinator.store import RoundState, Store
from genkd.card import card_from_json
from genkd.errors import (
    ConfigurationError,
    KeyOrSignatureError,
    Stopped,
    UsageError,
    VerificationFailed,
)
from genkd.provenance import Policy, secp256k1, verifier, verify
from genkd.provenance.release import read_receipt
from node.answers import AnswerLog
from node.inbox import shared_students
from tests.federation.local_grid import LocalGrid
from tests.federation.memory_federation import (
    CARD,
    MemoryFederation,
    in_memory,
    model_file,
    receipt_of,
)
from tests.federation.memory_registry import MemoryClient
from tests.federation.memory_rounds import Killed, Rounds, ToyStart, statement_parents, weights_of

STUDENT = "student.safetensors"


@pytest.fixture(autouse=True)
def quick_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same signatures are checked over and over: each is computed once."""
    monkeypatch.setattr(secp256k1, "_recover", functools.cache(secp256k1._recover))


@pytest.fixture
def rounds(federation: MemoryFederation, tmp_path: Path) -> Rounds:
    """Three nodes, and a coordinator on an empty folder."""
    federation.add_node()
    return Rounds(federation, tmp_path / "coordinator")


@pytest.fixture
def grid(rounds: Rounds) -> Iterator[LocalGrid]:
    with rounds.federation.grid() as made:
        yield made


# ------------------------------------------------------------------ whole rounds


def test_a_round_merges_records_and_shares_what_three_nodes_made(
    rounds: Rounds, grid: LocalGrid
) -> None:
    start, first = rounds.run(grid)
    rounds.assert_recorded_once()
    expected = weights_of(start.release / STUDENT) + 2  # the mean of 1, 2 and 3
    np.testing.assert_allclose(weights_of(first.release / STUDENT), expected, rtol=1e-6)
    for node in rounds.federation.nodes:
        assert [s.round for s in shared_students(node.membership)] == [0, 1]
    with Store.open(rounds.folder) as store:
        states = {r.number: (r.state, r.merged) for r in store.rounds()}
    assert states == {
        0: (RoundState.SHARED, start.record_id),
        1: (RoundState.SHARED, first.record_id),
    }


def test_each_node_gets_the_proof_that_its_own_release_is_recorded(
    rounds: Rounds, grid: LocalGrid
) -> None:
    rounds.run(grid)
    for node in rounds.federation.nodes:
        receipts = [receipt_of(path) for path in node.runs.glob("*/release/student-0x*")]
        (inclusion,) = [one.inclusion for one in receipts if one.record.round == 1]
        assert inclusion is not None
        assert inclusion.proof
        (kept,) = (node.membership / "shared").glob("0x*/round-000001/acknowledgement.json")
        assert kept.stat().st_size


def test_the_second_round_starts_from_the_merged_student_of_the_first(
    rounds: Rounds, grid: LocalGrid
) -> None:
    start, first, second = rounds.run(grid, rounds=2)
    rounds.assert_recorded_once(1)
    rounds.assert_recorded_once(2)
    expected = weights_of(start.release / STUDENT) + 4
    np.testing.assert_allclose(weights_of(second.release / STUDENT), expected, rtol=1e-6)
    for submission in rounds.submissions(2):
        assert submission.path is not None
        assert statement_parents(submission.path) == [first.record_id]


def test_the_whole_lineage_of_the_last_student_verifies(rounds: Rounds, grid: LocalGrid) -> None:
    *_, last = rounds.run(grid, rounds=2)
    chain = rounds.federation.chain
    folders = [path.parent for path in rounds.folder.glob("*/0x*/round-*/student-0x*")]
    verification = verify(
        last.release, policy=Policy(chain.domain), chain=chain, parents_in=folders
    )
    assert verification.summary == "valid"
    assert len(verification.parents) == 3


def test_repeating_a_finished_run_changes_nothing(rounds: Rounds, grid: LocalGrid) -> None:
    done = rounds.run(grid, rounds=2)
    height = rounds.federation.chain.height
    assert rounds.run(grid, rounds=2) == done
    assert rounds.federation.chain.height == height


def test_more_rounds_go_on_from_the_last_one_without_naming_the_student(
    rounds: Rounds, grid: LocalGrid
) -> None:
    first = rounds.run(grid)
    with Store.open(rounds.folder) as store:
        assert store.round(rounds.federation.run_id, 2) is None
    done = rounds.run(grid, start=None, rounds=2)
    assert done[:2] == first
    rounds.assert_recorded_once(2)


# ------------------------------------------------------------------ too few


def test_a_node_that_is_away_is_not_waited_for_and_gets_the_student_when_it_is_back(
    rounds: Rounds, grid: LocalGrid
) -> None:
    away = rounds.federation.nodes[2]
    grid.faults[away.node_id].offline = True
    rounds.run(grid)
    rounds.assert_recorded_once(1, members=2)
    assert shared_students(away.membership) == []
    grid.faults[away.node_id].offline = False
    rounds.run(grid, rounds=2)
    rounds.assert_recorded_once(2, members=3)
    assert max(s.round for s in shared_students(away.membership)) == 2


def test_a_node_that_was_away_at_the_end_gets_the_student_from_a_repeated_command(
    rounds: Rounds, grid: LocalGrid
) -> None:
    away = rounds.federation.nodes[2]
    grid.faults[away.node_id].offline = True
    rounds.run(grid)
    grid.faults[away.node_id].offline = False
    rounds.run(grid)
    assert [s.round for s in shared_students(away.membership)] == [1]


def test_fewer_than_the_quorum_merge_nothing_and_say_so(rounds: Rounds, grid: LocalGrid) -> None:
    rounds.absent = {node.node_id for node in rounds.federation.nodes[1:]}
    with pytest.raises(Stopped, match="1 releases came within 60 s, a merge needs 2") as stopped:
        rounds.run(grid)
    assert stopped.value.exit_code == 75
    assert rounds.merged() == []
    assert rounds.federation.chain.round(rounds.federation.run_id, 1).recorded_at == 0


def test_a_round_short_of_nodes_goes_on_when_they_come(rounds: Rounds, grid: LocalGrid) -> None:
    rounds.absent = {node.node_id for node in rounds.federation.nodes[1:]}
    with pytest.raises(Stopped):
        rounds.run(grid)
    rounds.absent = set()
    rounds.run(grid)
    rounds.assert_recorded_once()


def test_a_node_that_vanishes_between_two_steps_is_no_reason_to_fail(
    rounds: Rounds, grid: LocalGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalGrid.get_node_ids
    monkeypatch.setattr(LocalGrid, "get_node_ids", lambda self: [*original(self), 999])
    rounds.run(grid)  # the SuperLink gives no id for a message to a node it does not know
    rounds.assert_recorded_once()


def test_nobody_connected_is_short_of_nodes_too(rounds: Rounds, grid: LocalGrid) -> None:
    for faults in grid.faults.values():
        faults.offline = True
    with pytest.raises(Stopped, match="0 releases"):
        rounds.run(grid)


# ------------------------------------------------------------------ hostile and broken nodes


def foreign(message: Message) -> Message:
    message.content = RecordDict({"x": ConfigRecord({"y": 1})})
    return message


def another_record(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Any:
    """A reply with its release changed."""

    def changed(message: Message) -> Message:
        if message.metadata.message_type != COLLECT or message.has_error():
            return message
        reply = CollectReply.from_record(message.content)
        if reply.files is not None:
            files = change(dict(reply.files))
            message.content = CollectReply(reply.node, files).to_record()
        return message

    return changed


def from_another(message: Message) -> Message:
    message.metadata.__dict__["_src_node_id"] = message.metadata.src_node_id + 1
    return message


def with_files(files: dict[str, bytes], **changes: bytes) -> dict[str, bytes]:
    return files | {name.replace("_", "."): data for name, data in changes.items()}


HOSTILE: dict[str, Callable[[Message], Message | None]] = {
    "says nothing this project knows": foreign,
    "never answers": lambda message: None,
    "answers in another's name": from_another,
    "sends another's student under its own signature": another_record(
        lambda files: with_files(files, student_safetensors=model_file(99))
    ),
    "sends a student that is cut off": another_record(
        lambda files: with_files(files, student_safetensors=files[STUDENT][:-4])
    ),
    "sends a receipt that is no receipt": another_record(
        lambda files: with_files(files, receipt_json=b"{}")
    ),
    "sends no signature": another_record(lambda files: with_files(files, model_sig=b"{}")),
}


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_node_is_left_out_and_the_others_are_merged(
    rounds: Rounds, grid: LocalGrid, reply: Callable[[Message], Message | None]
) -> None:
    grid.faults[rounds.federation.nodes[0].node_id].reply = reply
    rounds.run(grid)
    rounds.assert_recorded_once(1, members=2)


def test_a_node_whose_app_raises_is_left_out(rounds: Rounds, grid: LocalGrid) -> None:
    grid.faults[rounds.federation.nodes[0].node_id].raises = RuntimeError("secret\npath")
    rounds.run(grid, nodes=2)
    rounds.assert_recorded_once(1, members=2)


@pytest.mark.parametrize("round_number", [0, 7])
def test_a_release_of_another_round_is_refused_with_the_reason(
    rounds: Rounds, grid: LocalGrid, round_number: int
) -> None:
    node = rounds.federation.nodes[0]
    other = node.publish(round_number)
    files = {path.name: path.read_bytes() for path in other.iterdir()}
    grid.faults[node.node_id].reply = another_record(lambda _: files)
    rounds.run(grid, nodes=2)
    refused = [one for one in rounds.submissions() if not one.accepted]
    assert {one.reason for one in refused} <= {
        f"it is of run 0x{rounds.federation.run_id.hex()}, round {round_number}"
    }


def test_a_release_of_another_run_is_refused_with_the_reason(
    rounds: Rounds, grid: LocalGrid
) -> None:
    node = rounds.federation.nodes[0]
    rounds.federation.coordinator.client.open_run(
        b"\7" * 32, rounds.federation.coordinator.address, bytes(32)
    )
    other = node.publish(1, run_id=b"\7" * 32)
    files = {path.name: path.read_bytes() for path in other.iterdir()}
    grid.faults[node.node_id].reply = another_record(lambda _: files)
    rounds.run(grid)
    rounds.assert_recorded_once(1, members=2)
    (refused,) = [one for one in rounds.submissions() if not one.accepted]
    assert refused.reason == f"it is of run 0x{'07' * 32}, round 1"


def test_one_nodes_release_sent_by_two_nodes_counts_once(rounds: Rounds, grid: LocalGrid) -> None:
    first, second, _ = rounds.federation.nodes
    stolen: dict[str, bytes] = {}

    def steal(files: dict[str, bytes]) -> dict[str, bytes]:
        stolen.update(files)
        return files

    grid.faults[first.node_id].reply = another_record(steal)
    grid.faults[second.node_id].reply = another_record(lambda files: stolen or files)
    rounds.run(grid, nodes=2)
    accepted = [one for one in rounds.submissions() if one.accepted]
    assert len({one.node for one in accepted}) == len(accepted) >= 2


def test_a_node_that_takes_no_student_does_not_hold_the_round_up(
    rounds: Rounds, grid: LocalGrid
) -> None:
    def spoil(message: Message) -> Message:
        if message.metadata.message_type == SHARE:
            message.content = RecordDict({})
        return message

    grid.faults[rounds.federation.nodes[0].node_id].request = spoil
    rounds.run(grid)
    rounds.assert_recorded_once(members=2)


# ------------------------------------------------------------------ revoked on the way


@contextmanager
def once_after(owner: Any, name: str, act: Callable[[], None]) -> Iterator[None]:
    """`act` after the first call of a function."""
    original, calls = getattr(owner, name), []

    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if not calls:
            calls.append(name)
            act()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        yield
    assert calls


def revoker(rounds: Rounds) -> Callable[[], None]:
    def revoke() -> None:
        first = next(one for one in rounds.submissions() if one.accepted)
        rounds.federation.chain.revoke_as_owner(first.record_id, 2)

    return revoke


REVOKED_AFTER = {
    "the merge": (round_closing, "merge_releases"),
    "the commit": (round_closing, "commit_round"),
    "the registration": (ReleasePress, "release"),
}


@pytest.mark.parametrize(
    ("owner", "name", "in_root"),
    [
        (*REVOKED_AFTER["the merge"], 2),
        (*REVOKED_AFTER["the commit"], 3),
    ],
    ids=["merge", "commit"],
)
def test_a_parent_revoked_on_the_way_is_left_out_of_the_merged_student(
    rounds: Rounds, grid: LocalGrid, owner: Any, name: str, in_root: int
) -> None:
    with once_after(owner, name, revoker(rounds)):
        _, first = rounds.run(grid)
    assert first.members == 2
    assert len(statement_parents(first.release)) == 2
    chain = rounds.federation.chain
    assert chain.round(rounds.federation.run_id, 1).count == in_root
    for node in rounds.federation.nodes:
        assert [s.round for s in shared_students(node.membership)] == [0, 1]


def test_a_parent_revoked_after_the_merged_student_was_recorded_costs_another_one(
    rounds: Rounds, grid: LocalGrid
) -> None:
    calls: list[Path] = []
    original = ReleasePress.release

    def release(self: ReleasePress, place: Any, model: Any, run_id: Any, n: int, p: Any) -> Path:
        path = original(self, place, model, run_id, n, p)
        if n == 1 and not calls:
            calls.append(path)
            revoker(rounds)()
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReleasePress, "release", release)
        _, first = rounds.run(grid)
    assert first.members == 2
    assert first.release != calls[0]
    for node in rounds.federation.nodes:
        assert [s.path.name for s in shared_students(node.membership)][-1] == first.release.name


def test_too_many_revoked_parents_leave_no_quorum_and_nothing_is_shared(
    rounds: Rounds, grid: LocalGrid
) -> None:
    valid = "2 of its 3 releases are still valid, a merge needs 3"
    with (
        once_after(round_closing, "commit_round", revoker(rounds)),
        pytest.raises(Stopped, match=valid),
    ):
        rounds.run(grid, quorum=3)
    assert rounds.merged() == []
    _, first = rounds.run(grid, quorum=2)  # what the hint says
    assert first.members == 2


def test_a_release_revoked_while_others_are_awaited_makes_room_for_another(
    rounds: Rounds, grid: LocalGrid
) -> None:
    revoked = []

    def revoke_first() -> None:
        accepted = [one for one in rounds.submissions() if one.accepted]
        if len(accepted) == 2 and not revoked:
            rounds.federation.chain.revoke_as_owner(accepted[0].record_id, 2)
            revoked.append(accepted[0].node)

    rounds.each_tick = revoke_first
    rounds.absent = {rounds.federation.nodes[2].node_id}
    with pytest.raises(Stopped, match="1 releases came"):
        rounds.run(grid)
    (refused,) = [one for one in rounds.submissions() if not one.accepted]
    assert refused.reason.startswith("the registry's owner revoked it")


def test_a_refused_release_does_not_cross_the_line_again_and_again(
    rounds: Rounds, grid: LocalGrid
) -> None:
    node = rounds.federation.nodes[0]
    record_id = read_receipt(node.publish(1)).record_id()
    rounds.federation.chain.revoke_as_owner(record_id, 2)
    rounds.trained[node.node_id] = 99  # it has nothing else to give
    rounds.run(grid)  # waits for the third node until its time is over
    rounds.assert_recorded_once(1, members=2)
    replies = [one for one in grid.answered if one.metadata.src_node_id == node.node_id]
    given = [one for one in replies if "files" in one.content]
    assert len(given) == 1
    assert len(replies) > 3
    told = AnswerLog(node.membership).refusal(rounds.federation.run_id, 1)
    assert told is not None
    assert told.outcome.startswith("the coordinator refuses it: the registry's owner revoked it")


def test_a_student_that_is_no_longer_valid_is_no_start_for_a_round(
    rounds: Rounds, grid: LocalGrid
) -> None:
    _, first = rounds.run(grid)
    rounds.federation.chain.revoke_as_owner(first.record_id, 2)
    with pytest.raises(VerificationFailed, match="revoked it"):
        rounds.run(grid, rounds=2)


def test_a_student_revoked_long_after_its_round_ends_the_run_that_descends_from_it(
    rounds: Rounds, grid: LocalGrid
) -> None:
    rounds.run(grid, rounds=2)
    old = rounds.submissions(1)[0]
    rounds.federation.chain.revoke_as_owner(old.record_id, 2)
    with pytest.raises(VerificationFailed, match="of round 1, from which later rounds descend"):
        rounds.run(grid, rounds=3)


def test_a_run_may_have_more_rounds_than_one_verification_has_generations(
    rounds: Rounds, grid: LocalGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "MAX_DEPTH", 3)
    monkeypatch.setattr(verifier, "MAX_LINEAGE", 5)
    rounds.run(grid, rounds=4)
    rounds.assert_recorded_once(4)


# ------------------------------------------------------------------ killed and repeated


def steps_of(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make every step of the coordinator that leaves a trace countable; [count, the one to die at].

    A step is a file put in its place, a directory renamed, a call that writes to the registry. The
    process dies just before it, which is just after the one before.
    """
    counter = [0, -1]
    coordinator = threading.current_thread()
    working = [False]

    def tick() -> None:
        if counter[0] == counter[1]:
            raise Killed
        counter[0] += 1

    def stepping(step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not coordinator or working[0]:
                return step(*arguments, **named)
            tick()
            return step(*arguments, **named)

        return wrapped

    original = Rounds._pass

    def passing(self: Rounds, grid: LocalGrid, seconds: float) -> None:
        working[0] = True  # what the nodes do is not the coordinator's
        original(self, grid, seconds)
        working[0] = False

    monkeypatch.setattr(Rounds, "_pass", passing)
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, stepping(getattr(os, name)))
    monkeypatch.setattr(MemoryClient, "_write", stepping(MemoryClient._write))
    return counter


MOST_STEPS = 200  # the loop ends by itself


@pytest.mark.parametrize("part", range(2))
def test_killed_before_any_step_the_round_ends_right_when_repeated(
    tmp_path: Path, part: int
) -> None:
    killed = 0
    for kill in range(part, MOST_STEPS, 2):
        folder = tmp_path / str(kill)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            federation = in_memory(folder, patch)
            rounds = Rounds(federation, folder / "coordinator")
            counter = steps_of(rounds, patch)
            counter[1] = kill
            with federation.grid() as grid:
                try:
                    rounds.run(grid)
                except Killed:
                    killed += 1
                done = counter[0] < kill
                counter[1] = -1
                rounds.run(grid)
            rounds.assert_recorded_once(members=2)
            for node in federation.nodes:
                assert max(s.round for s in shared_students(node.membership)) == 1
        if done:
            break
    assert killed > 10


def test_every_commit_of_the_store_may_be_the_last_thing_that_happens(
    rounds: Rounds, grid: LocalGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each committed transaction in turn, on one folder: it still goes on."""
    original = store_file.StoreFile.writing
    deaths = [0]

    @contextmanager
    def dying(self: Any) -> Iterator[None]:
        with original(self):
            yield
        deaths[0] += 1
        if deaths[0] % 3 == 0 and deaths[0] < 40:
            raise Killed

    monkeypatch.setattr(store_file.StoreFile, "writing", dying)
    for _ in range(60):
        try:
            rounds.run(grid)
            break
        except Killed:
            continue
    rounds.assert_recorded_once()


def test_ctrl_c_while_waiting_loses_nothing(rounds: Rounds, grid: LocalGrid) -> None:
    def interrupt() -> None:
        if any(one.accepted for one in rounds.submissions()):
            raise KeyboardInterrupt

    rounds.each_tick = interrupt
    with pytest.raises(KeyboardInterrupt):
        rounds.run(grid)
    kept = [one.record_id for one in rounds.submissions() if one.accepted]
    rounds.each_tick = lambda: None
    rounds.run(grid)
    rounds.assert_recorded_once()
    assert set(kept) <= {one.record_id for one in rounds.submissions()}


# ------------------------------------------------------------------ what else is not there


def test_a_chain_that_does_not_answer_for_a_while_only_delays_the_round(
    rounds: Rounds, grid: LocalGrid
) -> None:
    ticks = [0]

    def flicker() -> None:
        ticks[0] += 1
        rounds.federation.chain.unreachable = ticks[0] % 3 > 0

    rounds.each_tick = flicker
    rounds.run(grid)
    rounds.federation.chain.unreachable = False
    rounds.assert_recorded_once()


def test_a_superlink_that_fails_stops_the_run_resumably(
    rounds: Rounds, grid: LocalGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LocalGrid) -> list[int]:
        raise OSError("connection reset")

    monkeypatch.setattr(LocalGrid, "get_node_ids", fail)
    with pytest.raises(Stopped, match="the SuperLink does not do its part: OSError"):
        rounds.run(grid)


def test_a_run_that_nobody_opened_is_said_before_anybody_is_asked(
    rounds: Rounds, grid: LocalGrid
) -> None:
    with pytest.raises(ConfigurationError, match="the run is not open"):
        rounds.run(grid, run_id=b"\1" * 32)
    assert grid.sent == []


def test_a_coordinator_that_is_not_enrolled_and_owns_nothing_is_told(
    rounds: Rounds, grid: LocalGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, keys = rounds.federation.chain, rounds.federation.coordinator.keys
    chain.remove_node(keys.address, chain.now)
    with pytest.raises(KeyOrSignatureError, match="does not know the coordinator"):
        rounds.run(grid)


def test_a_run_does_not_begin_without_a_student(rounds: Rounds, grid: LocalGrid) -> None:
    with Store.open(rounds.folder) as store:
        archive = RunArchive(rounds.folder, store, rounds.press(), rounds.federation.run_id)
        from coordinator.federation_run import FederationRun
        from coordinator.node_messages import NodeMessages

        run = FederationRun(NodeMessages(grid), archive, rounds.plan(), None)
        with pytest.raises(UsageError, match="which student it starts from is not said"):
            run.run()


def test_another_start_student_for_a_run_that_has_begun_is_refused(
    rounds: Rounds, grid: LocalGrid
) -> None:
    class Other(ToyStart):
        def model_file(self, seed: int) -> bytes:
            return model_file(seed + 1)

    rounds.run(grid)
    with pytest.raises(ConfigurationError, match="has started from another student"):
        rounds.run(grid, start=Other(card_from_json(dict(CARD))))


def test_a_root_that_somebody_else_committed_is_not_taken_for_ours(
    rounds: Rounds, grid: LocalGrid
) -> None:
    stray = rounds.federation.nodes[0].sign(rounds.federation.folder / "stray")

    def commit() -> None:
        rounds.federation.commit_round(stray)

    with (
        once_after(round_closing, "merge_releases", commit),
        pytest.raises(ConfigurationError, match="that this folder did not send"),
    ):
        rounds.run(grid)

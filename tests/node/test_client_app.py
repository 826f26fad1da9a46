"""A node's app gives out its own signed release of a round, and tells nobody anything else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from contracts.exchange import (
    COLLECT,
    SHARE,
    CollectReply,
    CollectRequest,
    ShareReply,
    ShareRequest,
)
from genkd.provenance import Policy, verify
from genkd.provenance.record import run_id_of
from node import held_question, inbox
from node.answers import AnswerLog
from node.inbox import shared_students
from node.policy import POLICY_FILE
from tests.federation.local_grid import LocalGrid, size_on_the_wire
from tests.federation.memory_federation import (
    MemberNode,
    MemoryFederation,
    files_of,
    in_memory,
    model_file,
    receipt_of,
)

NOT_FOUND = "no finished release for this run and round"


@pytest.fixture
def members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryFederation:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    return in_memory(tmp_path, monkeypatch)


@pytest.fixture
def grid(members: MemoryFederation) -> Iterator[LocalGrid]:
    with members.grid() as made:
        yield made


@pytest.fixture
def node(members: MemoryFederation) -> MemberNode:
    return members.nodes[0]


def send(grid: LocalGrid, node: MemberNode, record: RecordDict, kind: str) -> Message:
    (reply,) = grid.send_and_receive([Message(record, node.node_id, kind)], timeout=30)
    return reply


def collect(
    grid: LocalGrid,
    node: MemberNode,
    *,
    run_id: bytes | None = None,
    round_number: int = 1,
    refused: Mapping[bytes, str] | None = None,
    wait: int = 0,
) -> CollectReply:
    request = CollectRequest(run_id or node.run_id, round_number, refused or {}, wait)
    reply = send(grid, node, request.to_record(), COLLECT)
    assert reply.has_content(), reply.error
    return CollectReply.from_record(reply.content)


def share(grid: LocalGrid, node: MemberNode, request: ShareRequest) -> ShareReply:
    reply = send(grid, node, request.to_record(), SHARE)
    assert reply.has_content(), reply.error
    return ShareReply.from_record(reply.content)


def test_a_round_from_the_release_to_the_merged_student(
    members: MemoryFederation, grid: LocalGrid
) -> None:
    releases = [node.publish() for node in members.nodes]
    for node, release in zip(members.nodes, releases, strict=True):
        reply = collect(grid, node)
        assert (reply.node, reply.files) == (node.address, files_of(release))
    complete = members.commit_round(*releases)
    merged = members.merge(list(complete.values()))
    for node, release in zip(members.nodes, releases, strict=True):
        request = members.share(
            merged,
            list(complete.values()),
            receipt=complete[release].to_bytes(),
            acknowledgement=members.acknowledge(release),
        )
        assert share(grid, node, request) == ShareReply(True)
        assert share(grid, node, request) == ShareReply(True)  # again changes nothing
        (kept,) = shared_students(node.membership)
        assert (kept.run_id, kept.round, kept.path.name) == (members.run_id, 1, merged.name)
        assert files_of(kept.path) == files_of(merged)
        assert (kept.path.parent / "acknowledgement.json").exists()
        # Anybody can verify what the node keeps, its own release included, with nothing else.
        for path in (kept.path, release):
            found = verify(path, policy=Policy(members.domain), chain=members.chain)
            assert found.status == "valid", found.summary
        log = [(one.kind, one.outcome, one.times) for one in AnswerLog(node.membership).recent(9)]
        assert log == [("share", "kept", 2), ("collect", "given out", 1)]


@pytest.mark.parametrize("student_bytes", [48, 10**6], ids=["tiny", "a-megabyte"])
def test_hardly_more_than_the_release_leaves_the_node(
    student_bytes: int, node: MemberNode, grid: LocalGrid
) -> None:
    release = node.publish(student=model_file(bytes_of_weights=student_bytes))
    collect(grid, node)
    (answered,) = grid.answered
    size = sum(map(len, files_of(release).values()))
    assert size_on_the_wire(answered) <= 1.1 * size + 64 * 1024
    assert size_on_the_wire(answered) >= size  # the measure sees the files


# ------------------------------------------------------------------ what is not given out


def test_a_refused_release_is_not_sent_again_and_its_owner_is_told_why(
    node: MemberNode, grid: LocalGrid
) -> None:
    first = node.publish()
    refused = {receipt_of(first).record_id(): "a value is not finite"}
    assert collect(grid, node, refused=refused).reason == "already collected"
    told = AnswerLog(node.membership).refusal(node.run_id, 1)
    assert told is not None
    assert told.outcome == "the coordinator refuses it: a value is not finite"
    newer = node.publish(deadline=receipt_of(first).record.deadline + 1)
    assert collect(grid, node, refused=refused).files == files_of(newer)
    assert AnswerLog(node.membership).refusal(node.run_id, 1) is None


# ------------------------------------------------------------------ a question that is kept


@pytest.fixture
def asked(
    node: MemberNode, grid: LocalGrid, quick_looks: None
) -> Iterator[Callable[..., Future[Any]]]:
    """Asks in another thread."""
    pool = ThreadPoolExecutor(1)
    yield lambda **question: pool.submit(collect, grid, node, **question)
    pool.shutdown()


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_question, "SECONDS_BETWEEN_LOOKS", 0.05)


def test_a_question_is_kept_until_there_is_a_release(
    node: MemberNode, asked: Callable[..., Future[Any]]
) -> None:
    reply = asked(wait=60)
    deadline = time.monotonic() + 30
    while not AnswerLog(node.membership).recent(1):  # that nothing was there is noted first
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not reply.done()
    before = time.monotonic()
    release = node.publish()
    assert reply.result(timeout=30).files == files_of(release)
    assert time.monotonic() - before < 10
    outcomes = [one.outcome for one in AnswerLog(node.membership).recent(9)]
    assert outcomes == ["given out", NOT_FOUND]


def test_a_question_is_kept_no_longer_than_the_coordinator_allows(
    asked: Callable[..., Future[Any]],
) -> None:
    before = time.monotonic()
    assert asked(wait=1).result(timeout=30).reason == NOT_FOUND
    assert 1 <= time.monotonic() - before < 10


def test_a_kept_question_of_a_refused_release_is_answered_by_another(
    node: MemberNode, asked: Callable[..., Future[Any]]
) -> None:
    first = node.publish()
    reply = asked(wait=60, refused={receipt_of(first).record_id(): "it is too large"})
    time.sleep(0.3)
    assert not reply.done()
    newer = node.publish(deadline=receipt_of(first).record.deadline + 1)
    assert reply.result(timeout=30).files == files_of(newer)


def test_who_asks_too_soon_is_answered_when_it_is_time(
    node: MemberNode, asked: Callable[..., Future[Any]]
) -> None:
    node.write_policy(seconds_between_answers=2)
    release = node.publish()
    assert asked().result(timeout=30).files is not None
    assert asked(wait=60).result(timeout=30).files == files_of(release)


def test_an_edit_of_the_policy_counts_for_a_question_that_is_kept(
    node: MemberNode, asked: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_question, "SECONDS_BETWEEN_READINGS", 0.1)
    release = node.publish()
    node.write_policy(runs=["autumn"])
    reply = asked(wait=60)
    time.sleep(0.3)
    assert not reply.done()
    node.write_policy()
    assert reply.result(timeout=30).files == files_of(release)


def test_a_simulated_node_keeps_no_question(
    members: MemoryFederation, node: MemberNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memberships").mkdir()
    (tmp_path / "memberships" / "7").symlink_to(node.membership)
    monkeypatch.setenv("GENKD_MEMBERSHIP", str(tmp_path / "memberships"))
    with members.grid() as grid:
        config = {"partition-id": 7, "num-partitions": 8}
        grid.contexts[node.node_id].node_config = config  # type: ignore[assignment]
        assert collect(grid, node, wait=60).reason == NOT_FOUND


# ------------------------------------------------------------------ what is not there


def other_run(node: MemberNode) -> dict[str, object]:
    return {"run_id": run_id_of("autumn")}


def far_round(node: MemberNode) -> dict[str, object]:
    return {"round_number": 2**32 - 1}


def past_round(node: MemberNode) -> dict[str, object]:
    return {"round_number": 0}


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (other_run, "policy: this node takes no part in the run"),
        (far_round, NOT_FOUND),
        (past_round, NOT_FOUND),
    ],
    ids=["another-run", "a-round-of-the-far-future", "a-round-of-the-past"],
)
def test_what_is_not_there_is_not_given(
    question: Callable[[MemberNode], dict[str, object]],
    reason: str,
    node: MemberNode,
    grid: LocalGrid,
) -> None:
    node.publish()
    reply = collect(grid, node, **question(node))  # type: ignore[arg-type]
    assert (reply.files, reply.reason) == (None, reason)
    assert AnswerLog(node.membership).recent(1)[0].outcome == reason


def test_who_asks_too_often_waits(node: MemberNode, grid: LocalGrid) -> None:
    node.write_policy(seconds_between_answers=100)
    node.publish()
    node.publish(round_number=2)
    assert collect(grid, node).files is not None
    for round_number in (1, 2):
        reply = collect(grid, node, round_number=round_number)
        assert reply.files is None
        assert reply.reason.startswith("policy: ask again in ")


def test_of_two_questions_at_once_one_is_answered(node: MemberNode, grid: LocalGrid) -> None:
    node.write_policy(seconds_between_answers=100)
    node.publish()
    record = CollectRequest(node.run_id, 1).to_record()
    messages = [Message(record, node.node_id, COLLECT) for _ in range(6)]
    replies = [CollectReply.from_record(m.content) for m in grid.send_and_receive(messages)]
    assert sum(reply.files is not None for reply in replies) == 1
    assert len(replies) == 6


def test_a_change_of_the_policy_counts_at_once(node: MemberNode, grid: LocalGrid) -> None:
    node.publish()
    assert collect(grid, node).files is not None
    node.write_policy(runs=["autumn"])
    assert collect(grid, node).reason.startswith("policy:")


# ------------------------------------------------------------------ nothing about this machine


def nothing_of(text: str | None, *secrets: Path) -> None:
    """No path of this machine, and no address of its chain, is in what a coordinator reads."""
    assert text is not None
    for secret in secrets:
        assert str(secret) not in text
        assert secret.name not in text
    assert "127.0.0.1" not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda node: (node.membership / POLICY_FILE).unlink(),
        lambda node: (node.membership / POLICY_FILE).write_text("rums = []"),
        lambda node: (node.membership / "federation.json").write_text("{}"),
        lambda node: (node.membership / "answers.sqlite").write_text("no database " * 100),
        lambda node: Path("genkd.toml").write_text("chain_id = 5"),
        lambda node: Path("genkd.toml").write_text("chain_it = 5"),
    ],
    ids=["no-policy", "misspelt-policy", "card", "log", "another-chain", "misspelt-setting"],
)
def test_a_node_at_fault_gives_nothing_out_and_says_it_in_a_word(
    spoil: Callable[[MemberNode], object],
    node: MemberNode,
    grid: LocalGrid,
    capsys: pytest.CaptureFixture[str],
) -> None:
    node.publish()
    spoil(node)
    reply = send(grid, node, CollectRequest(node.run_id, 1).to_record(), COLLECT)
    assert reply.has_error()
    assert "configuration is at fault" in (reply.error.reason or "")
    nothing_of(reply.error.reason, node.membership)
    assert "not answered" in capsys.readouterr().err  # the owner is told in full


def test_a_bug_shows_its_kind_and_nothing_else(
    members: MemoryFederation,
    node: MemberNode,
    grid: LocalGrid,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"boom at {node.membership}")

    monkeypatch.setattr(inbox, "keep", broken)
    release = node.publish()
    complete = members.commit_round(release)
    request = members.share(members.merge([complete[release]]), [complete[release]])
    reply = send(grid, node, request.to_record(), SHARE)
    assert reply.error.reason == "the node's app failed: RuntimeError"
    assert "boom at" in capsys.readouterr().err


def test_a_node_without_a_membership_says_so(members: MemoryFederation, node: MemberNode) -> None:
    with members.grid() as grid:
        grid.contexts[node.node_id].node_config = {"membership": "no/such/folder"}
        grid.contexts[node.node_id].run_config = {"membership": str(node.membership)}
        reply = send(grid, node, CollectRequest(node.run_id, 1).to_record(), COLLECT)
        assert reply.has_error()


def test_a_simulated_node_has_its_membership_by_its_number(
    members: MemoryFederation, node: MemberNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memberships").mkdir()
    (tmp_path / "memberships" / "7").symlink_to(node.membership)
    monkeypatch.setenv("GENKD_MEMBERSHIP", str(tmp_path / "memberships"))
    release = node.publish()
    with members.grid() as grid:
        for number, given in ((6, False), (7, True)):
            config = {"partition-id": number, "num-partitions": 8}
            grid.contexts[node.node_id].node_config = config  # type: ignore[assignment]
            reply = send(grid, node, CollectRequest(node.run_id, 1).to_record(), COLLECT)
            assert reply.has_error() is not given
    assert CollectReply.from_record(reply.content).files == files_of(release)


def test_an_unreachable_chain_is_told_and_asking_again_works(
    members: MemoryFederation, node: MemberNode, grid: LocalGrid
) -> None:
    release = node.publish()
    complete = members.commit_round(release)
    request = members.share(members.merge([complete[release]]), [complete[release]])
    members.chain.unreachable = True
    reply = share(grid, node, request)
    assert not reply.kept
    assert "does not answer" in reply.reason
    nothing_of(reply.reason, node.membership)
    assert shared_students(node.membership) == []
    # A release needs no chain to leave.
    assert collect(grid, node).files is not None
    members.chain.unreachable = False
    assert share(grid, node, request).kept


@pytest.mark.parametrize("kind", [COLLECT, SHARE])
@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"control": ConfigRecord({"json": b"{" * 100_000})}),
        RecordDict({"control": ConfigRecord({"path": "/etc/passwd"})}),
    ],
    ids=["empty", "deep", "foreign"],
)
def test_a_message_of_another_kind_is_answered_by_a_refusal(
    kind: str, record: RecordDict, node: MemberNode, grid: LocalGrid
) -> None:
    reply = send(grid, node, record, kind)
    reason = (
        CollectReply.from_record(reply.content).reason
        if kind == COLLECT
        else ShareReply.from_record(reply.content).reason
    )
    assert reason.startswith("a message of the federation is refused")


def test_the_same_student_shared_many_times_at_once_is_kept_once(
    members: MemoryFederation, node: MemberNode, grid: LocalGrid
) -> None:
    release = node.publish()
    complete = members.commit_round(release)
    request = members.share(
        members.merge([complete[release]]),
        [complete[release]],
        receipt=complete[release].to_bytes(),
    )
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: share(grid, node, request), range(4)))
    assert replies == [ShareReply(True)] * 4
    (kept,) = shared_students(node.membership)
    assert sorted(path.name for path in kept.path.parent.parent.iterdir()) == ["round-000001"]

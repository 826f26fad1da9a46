"""How long a coordinator waits for nodes that keep its question, on a clock of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from contracts.exchange import COLLECT, SHARE, CollectReply, CollectRequest, ShareReply
from coordinator.conversation import SECONDS_TO_KEEP, Conversation, Handout
from coordinator.intake import Intake
from coordinator.node_messages import SECONDS_TO_LIVE, Answered
from coordinator.store import Store

RUN = bytes(32)
ADDRESS = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
OTHER = "0xe05fcC23807536bEe418f142D19fa0d21BB0cfF7"
NODE = 7


class Merged(Handout):
    """A student whose files nobody looks at."""

    def request_for(self, *_: Any) -> Any:
        return ShareReply(True)  # anything that can be sent


class Node:
    """A node that keeps each question for as long as it may, and each student.

    Attributes:
        now: The clock of the coordinator.
        asked: When, and for how long.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[float, int]] = []
        self._kind = ""
        self._until = 0.0

    def online(self) -> list[int]:
        return [NODE]

    def is_busy(self, _: int) -> bool:
        return bool(self._kind)

    def send(self, _: int, kind: str, content: Any) -> None:
        assert not self._kind
        self._kind, wait = kind, 0
        if kind == COLLECT:
            wait = CollectRequest.from_record(content).wait
            self.asked.append((self.now, wait))
        self._until = self.now + wait + 1

    def answers(self) -> Iterator[Answered]:
        if self._kind and self.now >= self._until:
            kind, self._kind = self._kind, ""
            reply = ShareReply(True) if kind == SHARE else CollectReply(ADDRESS, None, "not yet")
            yield Answered(NODE, kind, reply.to_record())


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def let_in() -> dict[int, str]:
    """The node that each Flower node was let in for; none is known at first."""
    return {}


@pytest.fixture
def talk(node: Node, let_in: dict[int, str], tmp_path: Path) -> Iterator[Conversation]:
    with Store.open(tmp_path) as store:
        for number in (0, 1):
            store.begin_round(RUN, number)

        def sleep(seconds: float) -> None:
            node.now += seconds

        yield Conversation(
            node,  # type: ignore[arg-type]
            store,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            longest_pause=60.0,
            speaks_for=lambda: let_in,
            clock=lambda: node.now,
            sleep=sleep,
        )


def collect(talk: Conversation, seconds: float) -> None:
    intake: Intake = None  # type: ignore[assignment]
    start = Merged(RUN, 0, Path())
    talk.collect(1, start, intake, until=seconds, enough=lambda: False)


def test_a_node_that_keeps_the_question_is_asked_again_when_it_answers(
    node: Node, talk: Conversation
) -> None:
    collect(talk, 1000.0)
    starts, waits = zip(*node.asked, strict=True)
    assert set(waits) == {SECONDS_TO_KEEP}
    assert SECONDS_TO_KEEP + 60 < SECONDS_TO_LIVE
    between = [later - earlier for earlier, later in pairwise(starts)]
    assert len(between) == 3
    assert all(SECONDS_TO_KEEP < one < SECONDS_TO_KEEP + 5 for one in between)


def test_a_node_that_keeps_the_question_gets_the_merged_student_after_it(
    node: Node, talk: Conversation
) -> None:
    collect(talk, 20.0)  # others were enough
    assert talk.share(Merged(RUN, 1, Path()), until=node.now + 120.0) == (1, 0)
    assert SECONDS_TO_KEEP < node.now < SECONDS_TO_KEEP + 15


def test_a_node_that_takes_longer_than_it_may_is_not_waited_for(
    node: Node, talk: Conversation
) -> None:
    collect(talk, 20.0)
    node._until = 10_000.0
    assert talk.share(Merged(RUN, 1, Path()), until=node.now + 120.0) == (0, 1)
    assert node.now < SECONDS_TO_KEEP + 30


def test_a_node_that_takes_another_s_name_is_not_believed(
    node: Node,
    talk: Conversation,
    let_in: dict[int, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    let_in[NODE] = OTHER
    collect(talk, 1000.0)
    said = capsys.readouterr().err.splitlines()
    assert f"Flower node {NODE}: calls itself {ADDRESS}, which it was not let in for" in said
    with Store.open(tmp_path) as store:
        assert list(store.nodes()) == []
    let_in[NODE] = ADDRESS
    collect(talk, 2000.0)
    with Store.open(tmp_path) as store:
        assert [seen.node for seen in store.nodes()] == [ADDRESS]

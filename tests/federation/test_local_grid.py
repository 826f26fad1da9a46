"""The in-process grid does what the SuperLink does, faults included."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from tests.federation.local_grid import APP_RAISED, MESSAGE_UNAVAILABLE, LocalGrid

echo = ClientApp()


@echo.query("echo")
def answer(message: Message, context: Context) -> Message:
    message.content["said"] = ConfigRecord({"by": context.node_id})
    return Message(message.content, reply_to=message)


def ask(node: int, ttl: float | None = None) -> Message:
    return Message(RecordDict(), node, "query.echo", ttl=ttl)


def pulled(grid: LocalGrid, ids: list[str]) -> list[Message]:
    """The replies of the first pull that has any: a quick node may answer before that very pull."""
    until = time.monotonic() + 30
    found: list[Message] = []
    while not found and time.monotonic() < until:
        found = list(grid.pull_messages(ids))
        time.sleep(0.001)
    return found


@pytest.fixture
def grid() -> Iterator[LocalGrid]:
    with LocalGrid({7: echo, 8: echo}, {}) as made:
        yield made


def test_each_node_answers_and_each_reply_is_handed_out_once(grid: LocalGrid) -> None:
    question = ask(7)
    replies = list(grid.send_and_receive([question, ask(8)]))
    assert sorted(reply.content["said"]["by"] for reply in replies) == [7, 8]  # type: ignore[index]
    assert sorted(reply.metadata.src_node_id for reply in replies) == [7, 8]
    assert question.content == {}  # the sender's own record is not the node's
    ids = list(grid.push_messages([ask(7)]))
    assert [one.metadata.reply_to_message_id for one in pulled(grid, ids)] == ids
    assert list(grid.pull_messages(ids)) == []


def test_an_unknown_node_has_no_message_id(grid: LocalGrid) -> None:
    assert list(grid.push_messages([ask(9)])) == [""]


def test_messages_wait_for_a_node_that_is_away(grid: LocalGrid) -> None:
    grid.faults[7].offline = True
    assert list(grid.get_node_ids()) == [8]
    ids = list(grid.push_messages([ask(7)]))
    assert list(grid.pull_messages(ids)) == []
    grid.faults[7].offline = False
    (reply,) = pulled(grid, ids)
    assert reply.has_content()


def test_a_message_that_nobody_answers_expires(grid: LocalGrid) -> None:
    grid.faults[7].offline = True
    grid.faults[8].reply = lambda message: None
    replies = grid.send_and_receive([ask(7, ttl=0.05), ask(8, ttl=0.05)], timeout=5)
    assert [reply.error.code for reply in replies] == [MESSAGE_UNAVAILABLE] * 2


def test_an_app_that_raises_is_an_error_reply(grid: LocalGrid) -> None:
    grid.faults[7].raises = RuntimeError("boom")
    (reply,) = grid.send_and_receive([ask(7)])
    assert (reply.error.code, "boom" in (reply.error.reason or "")) == (APP_RAISED, True)

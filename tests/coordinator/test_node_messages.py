"""One answer a question comes back from a Flower grid, whatever a node or a SuperLink does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from flwr.app import Message, RecordDict

from contracts.flower_private import TaskIdentity
from coordinator.node_messages import NodeMessages
from genkd.errors import CoordinatorUnreachable, Stopped


class Grid:
    """Hands out message ids; pulling raises what it is told to, or finds nothing."""

    def __init__(self) -> None:
        self.raises: dict[str, Exception] = {}
        self.sent = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.sent += len(list(messages))
        return [str(self.sent)]

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        (message_id,) = ids
        if error := self.raises.get(message_id):
            raise error
        return []


@pytest.fixture
def grid() -> Grid:
    return Grid()


@pytest.fixture
def messages(grid: Grid) -> NodeMessages:
    # Without it Flower makes no message.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    found = NodeMessages(grid)  # type: ignore[arg-type]
    for node_id in (7, 8):
        found.send(node_id, "query.collect", RecordDict())
    return found


@pytest.mark.parametrize("error", [ValueError("torn"), KeyError("body"), RuntimeError("protobuf")])
def test_an_answer_that_cannot_be_read_is_that_node_s_and_ends_nothing(
    grid: Grid, messages: NodeMessages, error: Exception
) -> None:
    grid.raises["1"] = error
    (answer,) = messages.answers()
    assert (answer.node_id, answer.content) == (7, None)
    assert answer.error == f"its answer cannot be read: {type(error).__name__}"
    assert not messages.is_busy(7)
    assert messages.is_busy(8)
    assert list(messages.answers()) == []


@pytest.mark.parametrize("error", [httpx.ConnectError("gone"), ConnectionResetError()])
def test_a_superlink_that_fails_stops_and_keeps_what_is_under_way(
    grid: Grid, messages: NodeMessages, error: Exception
) -> None:
    grid.raises["1"] = error
    with pytest.raises(Stopped, match="the SuperLink does not do its part"):
        list(messages.answers())
    assert messages.is_busy(7)


def test_an_error_of_ours_stays_what_it_is(grid: Grid, messages: NodeMessages) -> None:
    grid.raises["1"] = CoordinatorUnreachable("the SuperLink is gone", hint="start it")
    with pytest.raises(CoordinatorUnreachable):
        list(messages.answers())

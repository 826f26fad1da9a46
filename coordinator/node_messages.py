"""The coordinator's side of a Flower grid: ask nodes, and take whatever comes back.

    nodes = NodeMessages(grid)
    nodes.send(node_id, COLLECT, record)
    for answer in nodes.answers(): ...

A node is asked one thing at a time, because a SuperNode handles one message at a time; an answer
may come at once, late, or never. Answers are fetched one by one, so that two hundred students are
never in memory together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from genkd.errors import GenKDError, Stopped

SECONDS_TO_LIVE = 600.0  # of a message and its answer, on the SuperLink
SECONDS_OF_GRACE = 30.0  # between the clocks of this process and the SuperLink
MAX_ERROR = 120


@dataclass(frozen=True)
class Answered:
    """What became of a message.

    Attributes:
        node_id: The Flower node it was for.
        kind: The message's type.
        content: The answer; None if there is none.
        error: Why there is none, in a few words.
    """

    node_id: int
    kind: str
    content: RecordDict | None
    error: str = ""


@dataclass(frozen=True)
class _Sent:
    node_id: int
    kind: str
    until: float


class NodeMessages:
    """Messages under way to the nodes of one Flower run.

    Args:
        grid: Flower's.
        clock: Seconds that never go back.
    """

    def __init__(self, grid: Grid, clock: Callable[[], float] = time.monotonic) -> None:
        self._grid = grid
        self._clock = clock
        self._under_way: dict[str, _Sent] = {}
        self._failed: list[Answered] = []

    def online(self) -> list[int]:
        """The Flower ids of the nodes that are connected."""
        with _flower():
            return sorted(self._grid.get_node_ids())

    def is_busy(self, node_id: int) -> bool:
        """Whether a message to this node is under way."""
        return any(sent.node_id == node_id for sent in self._under_way.values())

    def send(self, node_id: int, kind: str, content: RecordDict) -> None:
        """Send one message; that it could not be sent is an answer too."""
        with _flower():
            message = Message(content, node_id, kind, ttl=SECONDS_TO_LIVE)
            ids = list(self._grid.push_messages([message]))
        # "" or None: the SuperLink does not know the node, or would not take the message.
        if len(ids) != 1 or not ids[0]:
            self._failed.append(Answered(node_id, kind, None, "the message could not be sent"))
            return
        until = self._clock() + SECONDS_TO_LIVE + SECONDS_OF_GRACE
        self._under_way[ids[0]] = _Sent(node_id, kind, until)

    def answers(self) -> Iterator[Answered]:
        """What has come back since the last call, one by one."""
        while self._failed:
            yield self._failed.pop()
        for message_id, sent in list(self._under_way.items()):
            try:
                found = list(self._grid.pull_messages([message_id]))
            except GenKDError:
                raise
            except (httpx.HTTPError, OSError) as error:
                raise _stopped(error) from error
            except Exception as error:  # the SuperLink hands on whatever a node sent
                del self._under_way[message_id]
                reason = f"its answer cannot be read: {type(error).__name__}"
                yield Answered(sent.node_id, sent.kind, None, reason)
                continue
            for message in found:
                self._under_way.pop(message_id, None)
                yield _answered(sent, message)
            if not found and self._clock() > sent.until:
                del self._under_way[message_id]
                yield Answered(sent.node_id, sent.kind, None, "no answer in time")


def _answered(sent: _Sent, message: Message) -> Answered:
    if message.has_error():
        # The reason may hold a traceback of somebody else's program.
        reason = (message.error.reason or "").strip().splitlines() or [""]
        text = f"error {message.error.code} {reason[-1]}"[:MAX_ERROR]
        return Answered(sent.node_id, sent.kind, None, text.strip())
    if message.metadata.src_node_id not in (sent.node_id, 0):
        return Answered(sent.node_id, sent.kind, None, "another node answered")
    return Answered(sent.node_id, sent.kind, message.content)


@contextmanager
def _flower() -> Iterator[None]:
    """Flower's own errors, which are many and private, as one of ours."""
    try:
        yield
    except GenKDError:
        raise
    except Exception as error:
        raise _stopped(error) from error


def _stopped(error: Exception) -> Stopped:
    return Stopped(
        f"the SuperLink does not do its part: {type(error).__name__}",
        hint="see whether 'genkd-coordinator serve' runs, then repeat the same command",
    )

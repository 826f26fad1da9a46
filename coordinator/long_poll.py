"""Requests of SuperNodes for messages wait here until there is one, if they say that they would.

    arrivals = Arrivals()
    public = waiting(flower, arrivals)          # a SuperNode's `Prefer: wait=100` is honoured
    private = announcing(flower, arrivals)      # what is sent to a node ends its waiting

Flower's SuperNodes ask every three seconds whether there is a message: 400 bytes a second that
leave a node for as long as it is up. A request that waits costs as much as one that does not, and
brings a message sooner. Flower itself answers each attempt and checks who asks; its signature holds
for five minutes, so a wait is shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from contracts.flower_private import PullMessagesRequest, PushAppMessagesRequest
from coordinator.superlink_listeners import Application, Receive, Scope, Send

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/runtime/push-messages"
PREFER = re.compile(rb"wait=([0-9]{1,3})")
MAX_WAIT = 240.0
# A request for messages says who asks; more is none.
MAX_PULL_BYTES = 4096
# A message is announced before its content has come.
SECONDS_TO_SETTLE = 0.5


@dataclass
class _Poll:
    """A request that waits.

    Attributes:
        woken: Set to let it look again.
        last: Whether it is not to wait any more: its SuperNode has asked anew.
    """

    woken: asyncio.Event = field(default_factory=asyncio.Event)
    last: bool = False


class Arrivals:
    """Which nodes wait for a message. For one event loop."""

    def __init__(self) -> None:
        self._polls: dict[int, _Poll] = {}
        self._closed = False

    def announce(self, node_id: int) -> None:
        """There may be a message for a node."""
        if (poll := self._polls.get(node_id)) is not None:
            poll.woken.set()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        for poll in self._polls.values():
            poll.last = True
            poll.woken.set()

    @contextlib.contextmanager
    def poll(self, node_id: int) -> Iterator[_Poll]:
        """A request of a node begins to wait; one that it made before waits no longer.

        Whoever made that is gone: a message it was given would be lost.
        """
        if (before := self._polls.get(node_id)) is not None:
            before.last = True
            before.woken.set()
        poll = self._polls[node_id] = _Poll(last=self._closed)
        try:
            yield poll
        finally:
            if self._polls.get(node_id) is poll:
                del self._polls[node_id]


def waiting(superlink: Application, arrivals: Arrivals) -> Application:
    """The SuperLink, whose answer "no message" comes late to who prefers that."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seconds = _wait(scope)
        if not seconds:
            return await superlink(scope, receive, send)
        body = await _body(receive, MAX_PULL_BYTES)
        try:
            if body is None:
                raise DecodeError
            node_id = PullMessagesRequest.FromString(body).node.node_id
        except DecodeError:
            return await _refuse(send)
        gone = asyncio.create_task(_disconnect(receive))
        try:
            with arrivals.poll(node_id) as poll:
                for message in await _answer(superlink, scope, body, poll, gone, seconds):
                    await send(message)
        finally:
            gone.cancel()

    return application


def announcing(superlink: Application, arrivals: Arrivals) -> Application:
    """The SuperLink, from which messages for nodes end their waiting."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PUSH:
            return await superlink(scope, receive, send)
        body = await _body(receive)
        if body is None:
            return
        await superlink(scope, _replayed(body, receive), send)
        with contextlib.suppress(DecodeError):
            for message in PushAppMessagesRequest.FromString(body).messages_list:
                arrivals.announce(message.metadata.dst_node_id)

    return application


async def _answer(
    superlink: Application,
    scope: Scope,
    body: bytes,
    poll: _Poll,
    gone: asyncio.Task[None],
    seconds: float,
) -> list[Any]:
    """The SuperLink's answer once it is not "no message"; none if the SuperNode is gone."""
    until = asyncio.get_running_loop().time() + seconds

    async def until_gone() -> Any:
        await asyncio.shield(gone)
        return {"type": "http.disconnect"}

    while True:
        poll.woken.clear()
        sent: list[Any] = []
        state = dict(scope.get("state", {}))
        attempt = {**scope, "state": state}

        async def keep(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await superlink(attempt, _replayed(body, until_gone), keep)
        left = until - asyncio.get_running_loop().time()
        if not _is_nothing(sent) or poll.last or left <= 0:
            return sent
        woken = asyncio.create_task(poll.woken.wait())
        await asyncio.wait({woken, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        is_new = woken.done()
        woken.cancel()
        if gone.done():
            return []
        if poll.last or not is_new:
            return sent
        await asyncio.sleep(SECONDS_TO_SETTLE)


def _is_nothing(sent: list[Any]) -> bool:
    """Whether an answer is that there is no message: an empty one."""
    return sent[0]["status"] == 200 and not any(one.get("body") for one in sent[1:])


def _wait(scope: Scope) -> float:
    """For how many seconds a request may wait; 0 for one that may not."""
    if scope["type"] != "http" or scope["path"] != PULL:
        return 0.0
    for name, value in scope["headers"]:
        if name == b"prefer" and (match := PREFER.fullmatch(value)) is not None:
            return min(float(match[1]), MAX_WAIT)
    return 0.0


def _replayed(body: bytes, then: Receive) -> Receive:
    """What a request that has been read is read from once more."""
    first = True

    async def receive() -> Any:
        nonlocal first
        if not first:
            return await then()
        first = False
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _body(receive: Receive, limit: int | None = None) -> bytes | None:
    """A request's body; None if it ended early, or is larger than the limit."""
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts += message.get("body", b"")
        if limit is not None and len(parts) > limit:
            return None
        if not message.get("more_body", False):
            return bytes(parts)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": b""})

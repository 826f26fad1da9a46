"""A SuperNode's request for messages waits until there is one; without Flower's server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from contracts.flower_private import Node, PullMessagesRequest, PushAppMessagesRequest
from coordinator import long_poll
from coordinator.long_poll import PULL, PUSH, Arrivals, announcing, waiting

pytest.importorskip("flwr")
NODE = 2**63 + 7  # a number as the SuperLink gives them
WAITS = [(b"prefer", b"wait=100")]
AT_ONCE = 2.0  # seconds that no answer takes which does not wait


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_poll, "SECONDS_TO_SETTLE", 0.01)


@dataclass
class SuperLink:
    """Gives out messages that were put in it, once."""

    messages: dict[int, list[bytes]] = field(default_factory=dict)
    status: int = 200
    asked: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        body = (await receive())["body"]
        answer = b""
        if scope["path"] == PULL:
            mine = self.messages.get(PullMessagesRequest.FromString(body).node.node_id, [])
            answer = mine.pop(0) if mine else b""
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": answer})


class Connection:
    """A request as an ASGI server hands it on."""

    def __init__(self, path: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.scope = {"type": "http", "path": path, "method": "POST", "headers": headers}
        self.body: bytes | None = body
        self.gone = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def ask(self, application: Any) -> asyncio.Task[None]:
        return asyncio.create_task(application(self.scope, self.receive, self.send))

    @property
    def answer(self) -> bytes:
        return b"".join(one.get("body", b"") for one in self.sent[1:])


def pull(node_id: int = NODE, headers: list[tuple[bytes, bytes]] = WAITS) -> Connection:
    body = PullMessagesRequest(node=Node(node_id=node_id)).SerializeToString()
    return Connection(PULL, body, headers)


def push(node_id: int) -> Connection:
    request = PushAppMessagesRequest()
    request.messages_list.add().metadata.dst_node_id = node_id
    return Connection(PUSH, request.SerializeToString(), [])


def in_a_loop(
    scenario: Callable[[SuperLink, Arrivals], Awaitable[None]],
) -> Callable[[], None]:
    def test() -> None:
        async def run() -> None:
            async with asyncio.timeout(30):
                await scenario(SuperLink(), Arrivals())

        asyncio.run(run())

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


@in_a_loop
async def test_a_request_that_does_not_wait_is_answered_at_once(
    superlink: SuperLink, arrivals: Arrivals
) -> None:
    for headers in ([], [(b"prefer", b"wait=0")], [(b"prefer", b"wait=x")], [(b"prefer", b"x")]):
        asked = pull(headers=headers)
        async with asyncio.timeout(AT_ONCE):
            await asked.ask(waiting(superlink, arrivals))
        assert asked.sent[0]["status"] == 200


@in_a_loop
async def test_a_message_that_is_there_is_given_at_once(
    superlink: SuperLink, arrivals: Arrivals
) -> None:
    superlink.messages[NODE] = [b"message"]
    asked = pull()
    async with asyncio.timeout(AT_ONCE):
        await asked.ask(waiting(superlink, arrivals))
    assert asked.answer == b"message"


@in_a_loop
async def test_a_message_ends_the_waiting_of_its_node_and_no_other(
    superlink: SuperLink, arrivals: Arrivals
) -> None:
    mine, other = pull(), pull(NODE + 1)
    waits, still = (one.ask(waiting(superlink, arrivals)) for one in (mine, other))
    await asyncio.sleep(0.1)
    assert not waits.done()
    superlink.messages[NODE] = [b"message"]
    pushed = push(NODE)
    await pushed.ask(announcing(superlink, arrivals))
    assert pushed.sent[0]["status"] == 200
    async with asyncio.timeout(AT_ONCE):
        await waits
    assert mine.answer == b"message"
    assert not still.done()
    arrivals.close()
    await still
    assert (other.sent[0]["status"], other.answer) == (200, b"")


@in_a_loop
async def test_the_wait_has_an_end(superlink: SuperLink, arrivals: Arrivals) -> None:
    asked = pull(headers=[(b"prefer", b"wait=1")])
    async with asyncio.timeout(1 + AT_ONCE):
        await asked.ask(waiting(superlink, arrivals))
    assert (asked.sent[0]["status"], asked.answer) == (200, b"")
    assert superlink.asked == 1


@in_a_loop
async def test_a_supernode_that_is_gone_takes_no_message_with_it(
    superlink: SuperLink, arrivals: Arrivals
) -> None:
    asked = pull()
    waits = asked.ask(waiting(superlink, arrivals))
    await asyncio.sleep(0.05)
    asked.gone.set()
    async with asyncio.timeout(AT_ONCE):
        await waits
    superlink.messages[NODE] = [b"message"]
    await push(NODE).ask(announcing(superlink, arrivals))
    assert superlink.messages[NODE] == [b"message"]
    assert asked.sent == []


@in_a_loop
async def test_the_newest_request_of_a_node_is_the_one_that_waits(
    superlink: SuperLink, arrivals: Arrivals
) -> None:
    """The older one's connection may be dead without anybody having noticed."""
    older, newer = pull(), pull()
    first = older.ask(waiting(superlink, arrivals))
    await asyncio.sleep(0.05)
    second = newer.ask(waiting(superlink, arrivals))
    async with asyncio.timeout(AT_ONCE):
        await first
    assert older.answer == b""
    superlink.messages[NODE] = [b"message"]
    await push(NODE).ask(announcing(superlink, arrivals))
    async with asyncio.timeout(AT_ONCE):
        await second
    assert newer.answer == b"message"


@in_a_loop
async def test_who_is_refused_does_not_wait(superlink: SuperLink, arrivals: Arrivals) -> None:
    superlink.status = 401
    asked = pull()
    async with asyncio.timeout(AT_ONCE):
        await asked.ask(waiting(superlink, arrivals))
    assert asked.sent[0]["status"] == 401


@pytest.mark.parametrize("body", [b"\xff" * 9, b"x" * 100_000], ids=["nonsense", "large"])
def test_what_is_no_request_reaches_nobody(body: bytes) -> None:
    async def run() -> None:
        superlink, asked = SuperLink(), Connection(PULL, body, WAITS)
        await asked.ask(waiting(superlink, Arrivals()))
        assert asked.sent[0]["status"] == 400
        assert superlink.asked == 0

    asyncio.run(run())


@in_a_loop
async def test_after_the_end_nobody_waits(superlink: SuperLink, arrivals: Arrivals) -> None:
    arrivals.close()
    asked = pull()
    async with asyncio.timeout(AT_ONCE):
        await asked.ask(waiting(superlink, arrivals))
    assert asked.sent[0]["status"] == 200

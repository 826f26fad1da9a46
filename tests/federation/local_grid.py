"""Flower's engine in this process: real apps and messages, no sockets, faults on demand.

    grid = LocalGrid({7: app, 8: app}, {7: {"membership": "..."}, 8: {...}})
    ids = list(grid.push_messages([Message(record, 7, "query.collect")]))
    replies = list(grid.pull_messages(ids))

What it does as the SuperLink does: an id of "" for a message to a node nobody knows; messages to a
node that is away wait for it, until their time is over; an app that raises is an error reply; a
reply is handed out once. Public names of Flower, but for the identity that a process must have to
make a message.
"""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from contracts.flower_private import TaskIdentity

RUN_ID = TASK_ID = SERVER = 1
APP_RAISED, MESSAGE_UNAVAILABLE = 2, 3


@dataclass
class Faults:
    """What goes wrong at one node.

    Attributes:
        offline: It is away: not listed, and messages wait for it.
        raises: Its app raises this.
        delay: Seconds before it answers.
        request: Changes a message on the way to it.
        reply: Changes its reply on the way back; None swallows the reply.
    """

    offline: bool = False
    raises: Exception | None = None
    delay: float = 0.0
    request: Callable[[Message], Message] = field(default=lambda message: message)
    reply: Callable[[Message], Message | None] = field(default=lambda message: message)


class LocalGrid(Grid):
    """A grid whose nodes are client apps in this process.

    Args:
        apps: The app of each node, by node id.
        node_configs: The node's own configuration, by node id.
        workers: How many messages are answered at once.

    Attributes:
        faults: What goes wrong, by node id; change it at any time.
        sent: Every message pushed, in order.
        answered: Every reply as its node gave it, before it was changed.
    """

    def __init__(
        self,
        apps: Mapping[int, ClientApp],
        node_configs: Mapping[int, Mapping[str, Any]],
        *,
        workers: int = 4,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER, TASK_ID
        self.apps = dict(apps)
        self.contexts = {
            node: Context(RUN_ID, node, dict(node_configs.get(node, {})), RecordDict(), {})
            for node in self.apps
        }
        self.faults = {node: Faults() for node in self.apps}
        self.sent: list[Message] = []
        self.answered: list[Message] = []
        self._pool = ThreadPoolExecutor(workers)
        self._waiting: dict[str, Message] = {}
        self._running: dict[str, tuple[Message, Future[Message | None]]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._run: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let no thread outlive the test."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------------ what a Grid is

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.apps if not self.faults[node].offline]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            with self._lock:
                known = message.metadata.dst_node_id in self.apps
                number = f"message-{next(self._numbers)}" if known else ""
                if known:
                    sent = _on_the_wire(message, number)
                    self.sent.append(sent)
                    self._waiting[number] = sent
            ids.append(number)
        self._deliver()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._deliver()
        replies = []
        with self._lock:
            for number in message_ids:
                if number in self._running and self._running[number][1].done():
                    message, future = self._running.pop(number)
                    reply = future.result()
                    if reply is None:  # swallowed: it never arrives, until its time is over
                        self._running[number] = (message, future)
                        reply = _expired(message)
                    if reply is not None:
                        replies.append(reply)
                elif number in self._waiting:
                    expired = _expired(self._waiting[number])
                    if expired is not None:
                        del self._waiting[number]
                        replies.append(expired)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        end = time.monotonic() + (60.0 if timeout is None else timeout)
        ids = {number for number in self.push_messages(messages) if number}
        replies: list[Message] = []
        while ids and time.monotonic() < end:
            for reply in self.pull_messages(ids):
                ids.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            time.sleep(0.002)
        return replies

    # ------------------------------------------------------------------ the nodes

    def _deliver(self) -> None:
        """Hand waiting messages to the nodes that are there."""
        with self._lock:
            for number, message in list(self._waiting.items()):
                if not self.faults[message.metadata.dst_node_id].offline:
                    del self._waiting[number]
                    self._running[number] = (message, self._pool.submit(self._run_app, message))

    def _run_app(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        faults = self.faults[node]
        time.sleep(faults.delay)
        try:
            if faults.raises is not None:
                raise faults.raises
            reply = self.apps[node](faults.request(message), self.contexts[node])
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"  # Flower's own words
            reply = Message(Error(APP_RAISED, reason), reply_to=message)
        reply = _on_the_wire(reply, f"reply-to-{message.metadata.message_id}")
        self.answered.append(reply)
        return faults.reply(reply)


def _on_the_wire(message: Message, number: str) -> Message:
    """A copy that shares nothing with the sender's, with the ids the SuperLink gives."""
    said = message.metadata
    metadata = Metadata(
        run_id=RUN_ID,
        message_id=number,
        src_node_id=said.src_node_id,
        dst_node_id=said.dst_node_id,
        reply_to_message_id=said.reply_to_message_id,
        group_id=said.group_id,
        created_at=said.created_at,
        ttl=said.ttl,
        message_type=said.message_type,
    )
    if message.has_error():
        return Message(error=message.error, metadata=metadata)
    return Message(content=copy.deepcopy(message.content), metadata=metadata)


def _expired(message: Message) -> Message | None:
    """The error that stands for a reply once the message's time is over."""
    if time.time() < message.metadata.created_at + message.metadata.ttl:
        return None
    return Message(Error(MESSAGE_UNAVAILABLE, "the message expired"), reply_to=message)


def size_on_the_wire(message: Message) -> int:
    """The bytes of a message as Flower deflates it: itself, its records, their chunks."""
    total, seen, todo = 0, set(), [message]
    while todo:
        one = todo.pop()
        if one.object_id in seen:
            continue
        seen.add(one.object_id)
        total += len(one.deflate()) + len(one.object_id)
        todo += list((one.children or {}).values())
    return total

"""What an admitted node that is hostile can push into the SuperLink: its own answers, so much."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.flower_environment import flower_environment
from coordinator import node_limits
from coordinator.flower_run import run_server_app
from coordinator.node_limits import (
    BYTES_AN_HOUR,
    FREE_BYTES,
    PUSH_MESSAGES,
    PUSH_OBJECT,
    SECONDS_OF_WINDOW,
    NodeLimits,
)
from coordinator.superlink import register_supernode

NODE, OTHER, SUPERLINK = 2**63, 7, 1
Usage = namedtuple("Usage", "total used free")


def message(source: int = NODE, answers: str = "a question") -> Any:
    return SimpleNamespace(
        metadata=SimpleNamespace(src_node_id=source, reply_to_message_id=answers)
    )


def request(size: int = 100, messages: tuple[Any, ...] = (), trees: int = 1) -> Any:
    return SimpleNamespace(
        node=SimpleNamespace(node_id=NODE),
        messages_list=messages or (message(),),
        message_object_trees=(None,) * trees,
        ByteSize=lambda: size,
    )


class Limits:
    """The middleware before an application that always answers 200."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.limits = NodeLimits(self._answer, folder, clock=lambda: self.now)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def push(self, path: str = PUSH_OBJECT, asked: Any = None) -> int:
        sent: list[Any] = []

        async def send(event: Any) -> None:
            sent.append(event)

        scope = {"type": "http", "path": path, "state": {"protobuf_request": asked or request()}}
        asyncio.run(self.limits(scope, None, send))  # type: ignore[arg-type]
        return int(sent[0]["status"])


@pytest.fixture
def limits(tmp_path: Path) -> Limits:
    return Limits(tmp_path)


def test_a_node_pushes_so_many_bytes_an_hour(limits: Limits) -> None:
    half = BYTES_AN_HOUR // 2
    assert [limits.push(asked=request(half)) for _ in range(3)] == [200, 200, 403]
    other = request(half)
    other.node.node_id = OTHER
    assert limits.push(asked=other) == 200
    limits.now = SECONDS_OF_WINDOW
    assert limits.push(asked=request(half)) == 200


def test_what_messages_take_counts_too(limits: Limits) -> None:
    assert limits.push(PUSH_MESSAGES, request(BYTES_AN_HOUR)) == 200
    assert limits.push(asked=request(1)) == 403


def test_nodes_cannot_fill_the_disk(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, FREE_BYTES + 99))
    assert limits.push(asked=request(99)) == 200
    assert limits.push(asked=request(100)) == 403


@pytest.mark.parametrize(
    "asked",
    [
        request(messages=(message(SUPERLINK, ""),)),
        request(messages=(message(NODE, ""),)),
        request(messages=(message(OTHER),)),
        request(messages=(message(), message())),
        request(trees=0),
        request(trees=2),
    ],
    ids=["as the coordinator", "a question", "as another", "two", "without objects", "two trees"],
)
def test_a_node_pushes_answers_of_its_own(limits: Limits, asked: Any) -> None:
    assert limits.push(PUSH_MESSAGES, asked) == 403
    assert limits.push(PUSH_MESSAGES) == 200


def test_other_calls_are_not_looked_at(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_limits, "BYTES_AN_HOUR", 0)
    for path in ("/v1/fleet/pull-messages", "/v1/runtime/push-object", "/health"):
        assert limits.push(path) == 200


# On the real SuperLink: two nodes with keys of their own, one of which forges a question.
ATTACK = """
import json, sys, time
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.error_pb2 import Error
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
address, ca, run_id, *keys = sys.argv[1:]
clients, nodes = [], []
for path in keys:
    private = load_ssh_private_key(open(path, "rb").read(), None)
    interceptor = NodeAuthHttpInterceptor(private, private.public_key())
    client = FleetHttpClient.from_server_address(address, False, ca, interceptors=[interceptor])
    public_key = public_key_to_bytes(private.public_key())
    request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=30)
    clients.append(client)
    nodes.append(client.ActivateNode(request).node_id)
metadata = Metadata(
    run_id=int(run_id), message_id="ab" * 32, src_node_id=1, dst_node_id=nodes[1], ttl=60,
    message_type="query.collect", created_at=time.time(),
)
forged = PushMessagesRequest(
    node=Node(node_id=nodes[0]),
    messages_list=[Message(metadata=metadata, error=Error(code=1, reason="forged"))],
    message_object_trees=[ObjectTree(object_id="ab" * 32)],
)
try:
    clients[0].PushMessages(forged)
    status = 200
except Exception as error:
    status = getattr(getattr(error, "response", None), "status_code", repr(error))
pulled = clients[1].PullMessages(PullMessagesRequest(node=Node(node_id=nodes[1])))
print(json.dumps([status, len(pulled.messages_list)]))
"""


def test_no_node_puts_questions_to_another_in_the_coordinators_name(
    served: Any, make_node_key: Callable[[], Any]
) -> None:
    keys = [make_node_key() for _ in range(2)]
    for number, key in enumerate(keys):
        register_supernode(served.folder, key.public, f"node {number}")

    def main(_: Any, context: Any) -> list[int]:
        done = subprocess.run(
            [
                *(sys.executable, "-c", ATTACK, served.public, served.folder / "ca.pem"),
                *(str(context.run_id), *(key.path for key in keys)),
            ],
            env=flower_environment(served.home / "attacker"),
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        found: list[int] = json.loads(done.stdout)
        return found

    assert run_server_app(served.folder, main) == [403, 0]

"""What each of the two listeners lets through, without Flower."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.superlink_listeners import (
    MAX_REQUEST_BYTES,
    Application,
    Scope,
    private_application,
    public_application,
)

TOKEN = "5a" * 32
LENGTH = [(b"content-length", b"3")]


def application(name: bytes) -> Application:
    async def answer(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name})

    return answer


def ask(
    asked: Application,
    path: str,
    *,
    method: str = "POST",
    headers: list[tuple[bytes, bytes]] = LENGTH,
    kind: str = "http",
) -> tuple[Any, bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body was read")

    scope = {"type": kind, "path": path, "method": method, "headers": headers}
    asyncio.run(asked(scope, receive, send))
    if kind != "http":
        return sent, b""
    return sent[0]["status"], sent[1]["body"]


PUBLIC = public_application(application(b"superlink"), application(b"enrolment"))


@pytest.mark.parametrize(
    ("method", "path", "who"),
    [
        ("POST", "/v1/fleet/pull-messages", b"superlink"),
        ("POST", "/v1/fleet/register-node", b"superlink"),
        ("GET", "/health", b"superlink"),
        ("HEAD", "/health", b"superlink"),
        ("GET", "/genkd/ca.pem", b"enrolment"),
        ("POST", "/genkd/join", b"enrolment"),
    ],
)
def test_nodes_reach_the_fleet_and_enrolment(method: str, path: str, who: bytes) -> None:
    assert ask(PUBLIC, path, method=method) == (200, who)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/v1/control/{name}") for name in ("start-run", "register-node", "list-runs")),
        *(("POST", f"/v1/runtime/{name}") for name in ("acquire-task", "push-object")),
        ("POST", "/v1/fleet"),
        ("POST", "/V1/FLEET/pull-messages"),
        ("POST", "//v1/fleet/pull-messages"),
        ("POST", "/v1/control/../fleet/pull-messages"),
        ("GET", "/v1/fleet/pull-messages"),
        ("POST", "/health"),
        ("GET", "/health/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/genkd"),
        ("GET", "/"),
        ("GET", ""),
    ],
)
def test_nothing_else_is_there_for_them(method: str, path: str) -> None:
    assert ask(PUBLIC, path, method=method) == (404, b"")


def test_enrolment_that_is_not_served_is_not_there() -> None:
    assert ask(public_application(application(b"superlink"), None), "/genkd/join") == (404, b"")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 411),
        ([(b"transfer-encoding", b"chunked")], 411),
        ([(b"content-length", b"-1")], 411),
        ([(b"content-length", b"1e3")], 411),
        ([(b"content-length", b"3"), (b"content-length", b"3")], 411),
        ([(b"content-length", str(MAX_REQUEST_BYTES).encode())], 200),
        ([(b"content-length", str(MAX_REQUEST_BYTES + 1).encode())], 413),
        ([(b"content-length", b"9" * 4000)], 413),
    ],
    ids=["none", "chunked", "negative", "no-number", "two", "largest", "larger", "huge"],
)
def test_a_body_is_bounded_before_it_is_read(
    headers: list[tuple[bytes, bytes]], status: int
) -> None:
    assert ask(PUBLIC, "/v1/fleet/push-object", headers=headers)[0] == status


def test_websockets_are_closed() -> None:
    for asked in (PUBLIC, private_application(application(b"superlink"), TOKEN)):
        sent, _ = ask(asked, "/v1/fleet/pull-messages", kind="websocket")
        assert sent == [{"type": "websocket.close", "code": 1008}]


PRIVATE = private_application(application(b"superlink"), TOKEN)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", TOKEN.encode())],
        [(b"authorization", b"Bearer " + TOKEN.encode()[:-1])],
        [(b"authorization", b"Bearer " + TOKEN.upper().encode())],
        [(b"authorization", b"Bearer \xff\xfe")],
        [(b"authorization", b"Bearer " + TOKEN.encode())] * 2,
    ],
    ids=["none", "empty", "no-token", "no-scheme", "shorter", "case", "no-ascii", "twice"],
)
@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"])
def test_who_does_not_show_the_token_is_refused_on_loopback_too(
    path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    assert ask(PRIVATE, path, headers=headers) == (401, b"")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/control/start-run", 200),
        ("/v1/runtime/get-nodes", 200),
        ("/v1/fleet/pull-messages", 404),
        ("/docs", 404),
        ("/genkd/join", 404),
    ],
)
def test_the_token_opens_runs_and_tasks_and_nothing_more(path: str, status: int) -> None:
    headers = [(b"authorization", b"Bearer " + TOKEN.encode())]
    assert ask(PRIVATE, path, headers=headers)[0] == status


def test_whether_it_is_up_may_be_asked_by_anybody() -> None:
    assert ask(PRIVATE, "/health", method="GET", headers=[]) == (200, b"superlink")

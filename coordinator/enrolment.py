"""What strangers may ask a coordinator: its authority, its card, and to be let in.

    app = enrolment_app(authority, joins, card)         # ASGI; served on the public listener

    GET  /genkd/ca.pem              the authority's certificate
    GET  /genkd/federation.json     the federation's card
    POST /genkd/join                a request to join; the answer is how it stands with it
    GET  /genkd/join/0xADDR         how it stands with a node's request

Nothing else is readable, and nothing that is sent is more than parsed, checked and kept for a
person to decide. Each body is bounded in size and in time, each source in how often it asks, all
together in how many wait and in how many signatures are checked at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from contracts.authority import authority_pem
from contracts.enrolment import (
    AUTHORITY_PATH,
    CARD_PATH,
    JOIN_PATH,
    MAX_REQUEST_BYTES,
    FederationCard,
    JoinAnswer,
    JoinRequest,
)
from coordinator.certificates import Authority
from coordinator.joins import Joins, TooManyJoins
from genkd.canonical import canonical_json
from genkd.errors import GenKDError, InputFileRefused, KeyOrSignatureError
from genkd.provenance.typed_data import parse_address

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

SECONDS_FOR_A_BODY: Final = 10.0
# Requests that wait for their signatures to be checked, 5 ms each, one after the other.
MAX_WAITING: Final = 32
# Of one source: so many at once, then one a second. Many nodes may share one address.
BURST: Final = 120.0
PER_SECOND: Final = 1.0
MAX_SOURCES = 4096
JSON = b"application/json"
PEM = b"application/x-pem-file"


class _Refused(Exception):
    """An HTTP status other than 200, with its reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Allowance:
    """How often each source may ask: a bucket of tokens each, the latest sources kept."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, source: str, now: float) -> bool:
        tokens, then = self._buckets.pop(source, (BURST, now))
        tokens = min(BURST, tokens + (now - then) * PER_SECOND)
        allowed = tokens >= 1
        self._buckets[source] = (tokens - allowed, now)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return allowed


def enrolment_app(
    authority: Authority, joins: Joins, card: Callable[[], FederationCard]
) -> Application:
    """The ASGI application.

    Args:
        authority: The federation's.
        joins: Where requests are kept.
        card: The federation's card as it is now; may read files.
    """
    pem = authority_pem(authority.certificate)
    fingerprint = bytes.fromhex(authority.fingerprint)
    allowance = _Allowance()
    waiting = 0
    one_at_a_time = asyncio.Lock()

    def admit_or_keep(body: bytes) -> bytes:
        request = JoinRequest.from_bytes(body)
        request.check(card().domain, fingerprint)
        return joins.receive(request).to_bytes()

    async def join(scope: Scope, receive: Receive) -> bytes:
        nonlocal waiting
        if not allowance.take(_source(scope), time.monotonic()):
            raise _Refused(429, "this address asks too often; try again in a minute")
        body = await _body(scope, receive)
        if waiting >= MAX_WAITING:
            raise _Refused(503, "the coordinator is busy; try again in a minute")
        waiting += 1
        try:
            async with one_at_a_time:
                return await asyncio.to_thread(admit_or_keep, body)
        finally:
            waiting -= 1

    async def answer(scope: Scope, receive: Receive) -> tuple[bytes, bytes]:
        method, path = scope["method"], scope["path"]
        if path == JOIN_PATH:
            _require(method, "POST")
            return JSON, await join(scope, receive)
        _require(method, "GET")
        if path == AUTHORITY_PATH:
            return PEM, pem
        if path == CARD_PATH:
            return JSON, (await asyncio.to_thread(card)).to_bytes()
        if path.startswith(JOIN_PATH + "/"):
            return JSON, (await asyncio.to_thread(_state, joins, path)).to_bytes()
        raise _Refused(404, "there is no such thing here")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            kind, body = await answer(scope, receive)
            status = 200
        except Exception as error:
            status, reason = _as_status(error)
            kind, body = JSON, canonical_json({"error": reason})
        await _send(send, status, kind, body)

    return app


def _as_status(error: Exception) -> tuple[int, str]:
    """What a stranger is told of an error: what he did wrong, and nothing about this machine."""
    match error:
        case _Refused():
            return error.status, str(error)
        case TooManyJoins():
            return 503, f"{error.message}: {error.hint}"
        case InputFileRefused():
            return 400, error.message
        case KeyOrSignatureError():
            return 403, error.message
        case GenKDError():
            return 500, "the coordinator cannot answer just now; its operator sees why"
        case _:
            raise error


def _state(joins: Joins, path: str) -> JoinAnswer:
    text = path.removeprefix(JOIN_PATH + "/")
    try:
        address = parse_address(text)
    except InputFileRefused as error:
        raise _Refused(404, "there is no such node") from error
    found = joins.answer(address)
    if found is None:
        raise _Refused(404, f"{address} has not asked to join")
    return found


def _require(method: str, wanted: str) -> None:
    if method != wanted:
        raise _Refused(405, f"only {wanted} is answered here")


def _source(scope: Scope) -> str:
    """Who asks: an IPv4 address, or the /64 network of an IPv6 one, which one host has whole."""
    client = scope.get("client")
    host = str(client[0]) if client else ""
    return ":".join(host.split(":")[:4]) if host.count(":") > 1 else host


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The body, at most `MAX_REQUEST_BYTES` within `SECONDS_FOR_A_BODY`."""
    too_large = _Refused(413, f"a request has at most {MAX_REQUEST_BYTES} bytes")
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and (
            not value.isdigit() or len(value) > 9 or int(value) > MAX_REQUEST_BYTES
        ):
            raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(SECONDS_FOR_A_BODY):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Refused(400, "the request ended early")
                part = message.get("body", b"")
                size += len(part)
                if size > MAX_REQUEST_BYTES:
                    raise too_large
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        raise _Refused(408, "the request took too long to arrive") from error


async def _send(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    # What was not read of a body is not worth reading.
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

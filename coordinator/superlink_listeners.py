"""The two listeners of a SuperLink: what the world may ask, and what only this machine's owner may.

    await run_listeners(public, private, ready=announce, stop=stop)

Flower serves everything on one port: what SuperNodes ask (the Fleet API), and what starts runs,
registers keys and executes a run's tasks (the Control and Runtime APIs), which ask for no account.
So the port that nodes reach serves the Fleet API, where each call is signed by a registered key,
and enrolment; the rest is served on loopback only, and only to who shows the token of this start.

Loopback is open to every user of a machine. The token lies in a file that only the coordinator's
user can read, and is new at each start: who takes the port over after a crash is shown a token
that opens nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import uvicorn

# ASGI 3.0.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET = "/v1/fleet/"
ENROLMENT = "/genkd/"
HEALTH = "/health"
PRIVATE = ("/v1/control/", "/v1/runtime/")
CHALLENGE = 'Bearer realm="genkd-superlink"'
# Flower cuts what it sends into pieces of 5 MiB; nothing honest is larger by much.
MAX_REQUEST_BYTES = 16 * 1024 * 1024
# A SuperNode keeps a connection or two, and uses each every minute or two: a new one costs it as
# many bytes as two requests.
MAX_CONNECTIONS = 4096
SECONDS_IDLE = 150
SECONDS_TO_FINISH = 4
# Forward secrecy and authenticated encryption; TLS 1.3 has its own list.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def public_application(superlink: Application, enrolment: Application | None) -> Application:
    """What nodes reach: the Fleet API, enrolment, and whether the server is up.

    Everything else answers 404, as if it were not there. A request that does not state its length,
    or states more than `MAX_REQUEST_BYTES`, is refused before its body is read: Flower reads
    bodies whole, and before it checks who sends them.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await _refuse_protocol(scope, send)
        path = scope["path"]
        if path.startswith(ENROLMENT) and enrolment is not None:
            return await enrolment(scope, receive, send)
        if path == HEALTH and scope["method"] in ("GET", "HEAD"):
            return await superlink(scope, receive, send)
        if path.startswith(FLEET) and scope["method"] == "POST":
            status = _status_of_length(scope)
            if status is not None:
                return await _answer(send, status, close=True)
            return await superlink(scope, receive, send)
        return await _answer(send, 404)

    return application


def private_application(superlink: Application, token: str) -> Application:
    """What the owner of this process reaches on loopback: runs, keys and tasks, by the token.

    Args:
        superlink: Flower's application.
        token: What callers show as `Authorization: Bearer ...`; ASCII.
    """
    expected = f"Bearer {token}".encode("ascii")

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await superlink(scope, receive, send)
        if scope["type"] != "http":
            return await _refuse_protocol(scope, send)
        if scope["path"] != HEALTH:
            shown = _header(scope, b"authorization") or b""
            if not hmac.compare_digest(shown, expected):
                return await _answer(send, 401, (b"www-authenticate", CHALLENGE.encode()))
            if not scope["path"].startswith(PRIVATE):
                return await _answer(send, 404)
        return await superlink(scope, receive, send)

    return application


def _header(scope: Scope, name: bytes) -> bytes | None:
    """A header that occurs exactly once."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else None


def _status_of_length(scope: Scope) -> int | None:
    """The status of a refusal; None for a request whose stated length is allowed."""
    length = _header(scope, b"content-length")
    if length is None or not length.isdigit():
        return 411
    return 413 if len(length) > 18 or int(length) > MAX_REQUEST_BYTES else None


async def _answer(
    send: Send, status: int, *headers: tuple[bytes, bytes], close: bool = False
) -> None:
    closing = [(b"connection", b"close")] if close else []
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-length", b"0"), *headers, *closing],
        }
    )
    await send({"type": "http.response.body", "body": b""})


async def _refuse_protocol(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})


@dataclass(frozen=True)
class Tls:
    """The certificate of a listener, as PEM files.

    Attributes:
        certificate: The server's certificate, with what chains it to the authority.
        key: Its private key.
    """

    certificate: str
    key: str


class Listener(uvicorn.Server):
    """One bound socket and the application that answers on it.

    Args:
        application: Answers.
        bound: Bound and not yet listening.
        tls: None serves plain HTTP, which is for loopback.
        lifespan: Whether this listener starts and ends what the application needs.

    Raises:
        OSError, ssl.SSLError: If the certificate or its key cannot be read or do not fit.
    """

    def __init__(
        self,
        application: Application,
        bound: socket.socket,
        *,
        tls: Tls | None = None,
        lifespan: bool = False,
    ) -> None:
        config = uvicorn.Config(
            application,
            lifespan="on" if lifespan else "off",
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
            ssl_ciphers=CIPHERS,
            http="h11",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            # Who stands before us is nobody's claim: no header changes a peer's address.
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=SECONDS_IDLE,
            timeout_graceful_shutdown=SECONDS_TO_FINISH,
        )
        config.load()
        super().__init__(config)
        self.bound = bound

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: two servers in one process are stopped together, by `stop`."""
        yield

    async def start(self) -> asyncio.Task[None]:
        """Serve in a task of its own; returns once connections are taken.

        Raises:
            RuntimeError: If the application does not start.
        """
        task = asyncio.create_task(self.serve(sockets=[self.bound]))
        while not self.started:
            if task.done():
                task.result()
                raise RuntimeError("the SuperLink's application did not start")
            await asyncio.sleep(0.01)
        return task


async def run_listeners(
    public: Listener, private: Listener, *, ready: Callable[[], None], stop: asyncio.Event
) -> None:
    """Serve on both until `stop` is set, or one of them ends by itself.

    Args:
        public: For nodes.
        private: For loopback; starts and ends what the application needs, so it lives longer.
        ready: Called once both take connections.
        stop: Ends both; requests under way have `SECONDS_TO_FINISH`.

    Raises:
        RuntimeError: If the application does not start.
    """
    tasks = []
    stopped = asyncio.create_task(stop.wait())
    try:
        for listener in (private, public):
            tasks.append(await listener.start())
        ready()
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        for listener, task in reversed(list(zip((private, public), tasks, strict=False))):
            listener.should_exit = True
            await task

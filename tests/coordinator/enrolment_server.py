"""Servers for the tests of enrolment: an honest one, and one that does what a test says."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.enrolment import FederationCard
from coordinator.certificates import Authority
from coordinator.enrolment import enrolment_app
from coordinator.joins import Joins
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import make_profile

CARD = FederationCard(
    coordinator="0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF",
    chain_id=31337,
    registry="0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf",
    rpc_url=None,
    confirmations=0,
    app_sha256="ab" * 32,
    runs=("spring",),
)


def keys_of(secret: int) -> NodeKeys:
    signing = ec.generate_private_key(ec.SECP256R1())
    return NodeKeys(secret, signing, make_profile(secret, signing, bytes(32), bytes([1]) * 32))


def supernode_key(kind: type[ec.EllipticCurve] = ec.SECP384R1) -> str:
    public = ec.generate_private_key(kind()).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@dataclass(frozen=True)
class Served:
    """A coordinator that answers.

    Attributes:
        address: `host:port`.
        authority: Its authority.
        joins: What it keeps.
    """

    address: str
    authority: Authority
    joins: Joins

    @property
    def fingerprint(self) -> str:
        return self.authority.fingerprint


def authority_in(folder: Path, *names: str) -> Authority:
    authority = Authority.create(folder)
    authority.issue(names or ["localhost"])
    return authority


@contextmanager
def serving(folder: Path, *, host: str = "127.0.0.1") -> Iterator[Served]:
    """The enrolment application over TLS on a free port."""
    authority = authority_in(folder)
    joins = Joins(folder)
    bound = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else 2)
    config = uvicorn.Config(
        enrolment_app(authority, joins, lambda: CARD),  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
        http="h11",
        ws="none",
        ssl_certfile=folder / "server.pem",
        ssl_keyfile=str(folder / "server.key"),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        place = f"[{host}]" if ":" in host else host
        yield Served(f"{place}:{bound.getsockname()[1]}", authority, joins)
    finally:
        server.should_exit = True
        thread.join(20)
        bound.close()


@contextmanager
def behaving(
    respond: Callable[[Any], None], certificate: Path | None = None, key: Path | None = None
) -> Iterator[str]:
    """A server that hands each connection to `respond`; over TLS if a certificate is given."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def one(raw: socket.socket) -> None:
        with suppress(OSError, ValueError), raw:
            raw.settimeout(10)
            if context is None:
                respond(raw)
                return
            with context.wrap_socket(raw, server_side=True) as connection:
                respond(connection)

    def work() -> None:
        while not over.is_set():
            with suppress(OSError):
                raw, _ = listener.accept()
                threading.Thread(target=one, args=(raw,), daemon=True).start()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        with suppress(OSError):
            socket.create_connection(listener.getsockname(), 1).close()
        thread.join(10)
        listener.close()


def read_request(connection: Any) -> str:
    """A whole request: what is left unread makes the kernel take back the answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head.decode("latin-1")

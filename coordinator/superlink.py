"""The SuperLink of a federation: Flower's server, hardened, and the SuperNodes it knows.

    serve(SuperLinkConfig(federation=Path("federation"), port=9092), enrolment)

    node_id = register_supernode(federation, public_key, name="0x5aAe...")
    unregister_supernode(federation, public_key)

Runs, nodes and messages under way lie in `superlink.sqlite`: a SuperLink that was killed goes on
where it was. It runs no app and no code of a run: the ServerApp is `genkd-coordinator run`, in a
process of its own that shows a secret to take it. Which listener serves what is told in
`coordinator.superlink_listeners`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import secrets
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.flower_environment import set_flower_environment
from coordinator.superlink_file import (
    RunningSuperLink,
    find_superlink,
    remove_superlink_file,
    write_superlink_file,
)
from genkd.durable import unwritable
from genkd.errors import ConfigurationError, KeyOrSignatureError

if TYPE_CHECKING:
    from coordinator.superlink_listeners import Application, Tls

__all__ = [
    "RunningSuperLink",
    "SuperLinkConfig",
    "SuperNode",
    "find_superlink",
    "list_supernodes",
    "register_supernode",
    "serve",
    "unregister_supernode",
]

LOCK, FLOWER_HOME = "superlink.lock", "flwr-home"
TOKEN_BYTES = 32
MAX_PORT = 65535
# For a question of a person at a terminal; a run is more patient.
SECONDS_OF_PATIENCE = 10.0
# Flower counts a node as connected for two of the intervals in which it reports.
INTERVALS_OF_GRACE = 2


@dataclass(frozen=True)
class SuperLinkConfig:
    """What a SuperLink serves, and where.

    Attributes:
        federation: The folder with `ca.pem`, `server.pem` and `server.key`; the database, the
            secret and `superlink.json` are kept there.
        host: The address the public listener binds; "0.0.0.0" is every interface.
        port: Its port; 0 takes any that is free.
        public_name: Under which name nodes reach it, for `superlink.json`; None says `host`.
    """

    federation: Path
    host: str = "0.0.0.0"  # noqa: S104 (nodes come from elsewhere)
    port: int = 9092
    public_name: str | None = None


def serve(
    config: SuperLinkConfig,
    enrolment: Application | None = None,
    *,
    on_ready: Callable[[RunningSuperLink], None] | None = None,
) -> None:
    """Run the SuperLink until SIGTERM or Ctrl-C; to be called in the main thread.

    Args:
        config: What and where.
        enrolment: The ASGI application that gets everything under `/genkd/` on the public listener;
            None answers 404 there.
        on_ready: Called once both listeners take connections, in the thread that answers them: it
            must not wait for an answer of the SuperLink.

    Raises:
        ConfigurationError: If the folder is not a federation's, another SuperLink serves it, or the
            port cannot be bound.
        KeyOrSignatureError: If the certificate or its key cannot be used.
        ResourceExhausted: If the folder cannot be written.
    """
    federation = config.federation
    with (
        _sole_server(federation),
        _bound(config.host, config.port) as public_socket,
        _bound("127.0.0.1", 0) as private_socket,
    ):
        running = RunningSuperLink(
            public=_address(config.public_name or config.host, public_socket),
            private=_address("127.0.0.1", private_socket),
            pid=os.getpid(),
            token=secrets.token_hex(TOKEN_BYTES),
        )

        def announce() -> None:
            write_superlink_file(federation, running)
            if on_ready is not None:
                on_ready(running)

        set_flower_environment(federation / FLOWER_HOME)
        try:
            _run(config, enrolment, running, (public_socket, private_socket), announce)
        finally:
            remove_superlink_file(federation)


def _run(
    config: SuperLinkConfig,
    enrolment: Application | None,
    running: RunningSuperLink,
    sockets: tuple[socket.socket, socket.socket],
    announce: Callable[[], None],
) -> None:
    from coordinator.long_poll import Arrivals, announcing, waiting
    from coordinator.superlink_application import flower_application
    from coordinator.superlink_listeners import (
        MAX_CONNECTIONS,
        Listener,
        Tls,
        private_application,
        public_application,
        run_listeners,
    )

    tls = Tls(str(config.federation / "server.pem"), str(config.federation / "server.key"))
    _require_usable(tls)
    _allow_open_files(MAX_CONNECTIONS)
    flower = flower_application(config.federation)
    arrivals = Arrivals()
    for_nodes, for_us = waiting(flower, arrivals), announcing(flower, arrivals)
    public = Listener(public_application(for_nodes, enrolment), sockets[0], tls=tls)
    private = Listener(private_application(for_us, running.token), sockets[1], lifespan=True)

    async def run() -> None:
        stop = asyncio.Event()
        with _stopped_by_signals(stop):
            stopping = asyncio.create_task(stop.wait())
            stopping.add_done_callback(lambda _: arrivals.close())
            await run_listeners(public, private, ready=announce, stop=stop)

    asyncio.run(run())


def _require_usable(tls: Tls) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise KeyOrSignatureError(
            f"the server's certificate cannot be used: {type(error).__name__}",
            hint="run 'genkd-coordinator init' to issue it again",
        ) from error


def _allow_open_files(connections: int) -> None:
    """Raise this process's limit of open files, as far as it may: the usual 1024 are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


@contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set `stop`; the second of them does what it does elsewhere."""
    loop = asyncio.get_running_loop()
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()

    def on_signal() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextmanager
def _sole_server(federation: Path) -> Iterator[None]:
    """Hold the folder: two SuperLinks on one database lose messages."""
    if not (federation / "server.key").is_file():
        raise ConfigurationError(
            f"{federation} holds no server certificate",
            hint="run 'genkd-coordinator init --host NAME' first",
        )
    with lock(federation / LOCK, f"another SuperLink serves {federation}"):
        yield


@contextmanager
def lock(path: Path, taken: str) -> Iterator[None]:
    """Hold an exclusive lock on a file, which ends with the process at the latest.

    Args:
        path: The file; its content does not matter.
        taken: The message of the error.

    Raises:
        ConfigurationError: If another process holds it.
        ResourceExhausted: If the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(taken, hint="end it first, or leave it at work") from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A bound TCP socket; the servers listen on it."""
    try:
        if not 0 <= port <= MAX_PORT:  # it would be taken modulo 65536
            raise OverflowError("a port is 0..65535")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        bound = socket.socket(family[0][0], socket.SOCK_STREAM)
        try:
            # A restart need not wait for the connections of the one before to be forgotten.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(family[0][4])
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"{host}:{port} cannot be listened on: {error}",
            hint="choose another address or port, or end the program that holds it",
        ) from error
    with bound:
        yield bound


def _address(host: str, bound: socket.socket) -> str:
    port = bound.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class SuperNode:
    """A SuperNode whose key the SuperLink knows.

    Attributes:
        node_id: Flower's number for it, by which messages are addressed.
        public_key: As it was registered: PEM.
        name: As it was registered; ours is the node's address.
        online: Whether it reports in time.
        last_seen: When it reported last, seconds since 1970, UTC; None if never.
    """

    node_id: int
    public_key: bytes
    name: str
    online: bool
    last_seen: float | None


def list_supernodes(federation: Path) -> list[SuperNode]:
    """The registered SuperNodes, by their numbers; those that were unregistered are not among them.

    Raises:
        CoordinatorUnreachable: If no SuperLink serves the folder.
    """
    set_flower_environment(federation / FLOWER_HOME)
    from contracts.flower_private import ListNodesRequest
    from coordinator.superlink_calls import SuperLinkCalls, control_client

    with control_client(SuperLinkCalls(federation, patience=SECONDS_OF_PATIENCE)) as control:
        answer = control.ListNodes(ListNodesRequest())
    nodes = []
    for info in answer.nodes_info:
        if info.status == "unregistered":
            continue
        online = info.status == "online"
        ago = INTERVALS_OF_GRACE * info.heartbeat_interval if online else 0.0
        last_seen = info.online_until - ago if info.online_until else None
        nodes.append(SuperNode(info.node_id, info.public_key, info.name, online, last_seen))
    return sorted(nodes, key=lambda node: node.node_id)


def register_supernode(federation: Path, public_key: bytes, name: str) -> int:
    """Let a SuperNode in by its key. One that is in already keeps its number.

    Args:
        federation: The folder of the SuperLink that runs.
        public_key: The SuperNode's, PEM, on a NIST curve.
        name: For people: the node's address.

    Returns:
        Flower's number of the node.

    Raises:
        CoordinatorUnreachable: If no SuperLink serves the folder.
        ConfigurationError: If the key is not of a NIST curve, or was unregistered before: Flower
            takes a key once.
    """
    known = _number_of(federation, public_key)
    if known is not None:
        return known
    from contracts.flower_private import RegisterNodeRequest
    from coordinator.superlink_calls import SuperLinkCalls, control_client

    request = RegisterNodeRequest(public_key=public_key, name=name)
    try:
        with control_client(SuperLinkCalls(federation, patience=SECONDS_OF_PATIENCE)) as control:
            return int(control.RegisterNode(request).node_id)
    except ConfigurationError as error:
        # A call whose answer was lost on its way was repeated, and is refused as known.
        known = _number_of(federation, public_key)
        if known is not None:
            return known
        raise ConfigurationError(
            f"the SuperLink does not take the SuperNode key of {name}: removed before, or no key",
            hint="the node makes another: it deletes supernode.key in its membership, and joins",
        ) from error


def _number_of(federation: Path, public_key: bytes) -> int | None:
    nodes = list_supernodes(federation)
    return next((node.node_id for node in nodes if node.public_key == public_key), None)


def unregister_supernode(federation: Path, public_key: bytes) -> bool:
    """Shut a SuperNode out by its key, for good: the same key is never taken again.

    Returns:
        Whether it was in.

    Raises:
        CoordinatorUnreachable: If no SuperLink serves the folder.
    """
    found = [node for node in list_supernodes(federation) if node.public_key == public_key]
    from contracts.flower_private import UnregisterNodeRequest
    from coordinator.superlink_calls import SuperLinkCalls, control_client

    for node in found:
        with control_client(SuperLinkCalls(federation, patience=SECONDS_OF_PATIENCE)) as control:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
    return bool(found)

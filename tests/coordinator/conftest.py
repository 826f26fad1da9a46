"""A real SuperLink on free ports, in a process of its own, that asks no other host for anything."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.flower_environment import flower_environment, set_flower_environment
from coordinator.certificates import Authority
from coordinator.superlink_file import RunningSuperLink, find_superlink
from genkd.errors import CoordinatorUnreachable

ROOT = Path(__file__).parents[2]
# Of programs that import Flower, on a machine with other work.
SECONDS_TO_START = 180
# Whatever leaves this machine, or asks for a name, is written down.
SERVE = """
import ipaddress, sys
from pathlib import Path
federation, port, home = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        host = arguments[1][0] if event == "socket.connect" else arguments[0]
        if host not in ("127.0.0.1", "::1"):
            with open(home / "outside.log", "a") as log:
                print(event, arguments, file=log)
sys.addaudithook(watch)
async def enrolment(scope, receive, send):
    body = scope["path"].encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
from coordinator.superlink import SuperLinkConfig, serve
serve(SuperLinkConfig(federation, host="127.0.0.1", port=port), enrolment)
print("ended")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float, log: Path) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


@dataclass
class ServedFederation:
    """A federation's folder and the SuperLink process that serves it."""

    folder: Path
    home: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> RunningSuperLink:
        return find_superlink(self.folder)

    @property
    def public(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self.home / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(self.folder), str(self.port), str(self.home)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        wait_for(self._is_up, SECONDS_TO_START, self.home / "serve.log")

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said
        try:
            return find_superlink(self.folder).pid == self.process.pid
        except CoordinatorUnreachable:
            return False

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    @property
    def said(self) -> str:
        return (self.home / "serve.log").read_text()

    @property
    def outside(self) -> str:
        """What it asked of other hosts."""
        log = self.home / "outside.log"
        return log.read_text() if log.exists() else ""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFederation]:
    """A SuperLink that runs; a test that ends it starts it again."""
    base = tmp_path_factory.mktemp("served")
    folder, home = base / "federation", base / "home"
    home.mkdir()
    Authority.create(folder).issue(["localhost"])
    before = dict(os.environ)
    set_flower_environment(home / "flwr-home")
    federation = ServedFederation(folder, home)
    federation.start()
    try:
        yield federation
    finally:
        if federation.process is not None and federation.process.poll() is None:
            federation.stop()
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True)
class NodeKey:
    """A SuperNode's key pair: the private key in a file, as Flower wants it."""

    path: Path
    public: bytes


@pytest.fixture(scope="session")
def make_node_key(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], NodeKey]:
    folder = tmp_path_factory.mktemp("node-keys")

    def make() -> NodeKey:
        key = ec.generate_private_key(ec.SECP256R1())
        path = folder / f"{len(list(folder.iterdir()))}.key"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        # As `flwr supernode register` wants it.
        path.with_suffix(".pub").write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            )
        )
        return NodeKey(path, public)

    return make


@pytest.fixture(scope="module")
def connected_node(served: ServedFederation, make_node_key: Callable[[], NodeKey]) -> Iterator[int]:
    """A stock SuperNode with the tests' executor, registered and connected; its Flower number."""
    from coordinator.superlink import list_supernodes, register_supernode

    key = make_node_key()
    node_id = register_supernode(served.folder, key.public, "0xnode")
    port, secret = free_port(), served.home / "node.secret"
    secret.write_bytes(b"of the node's executor")
    environment = flower_environment(served.home / "node-flwr") | {"PYTHONPATH": str(ROOT)}
    supernode = [
        *(str(Path(sys.executable).parent / "flower-supernode"), "--superlink", served.public),
        *("--root-certificates", str(served.folder / "ca.pem")),
        *("--auth-supernode-private-key", str(key.path), "--port", str(port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
    ]
    executor = [
        *(sys.executable, str(Path(__file__).with_name("echo_executor.py"))),
        *(f"127.0.0.1:{port}", str(secret)),
    ]
    with (served.home / "node.log").open("wb") as log:
        started = [
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            for command in (supernode, executor)
        ]
    try:
        wait_for(
            lambda: any(node.online for node in list_supernodes(served.folder)),
            SECONDS_TO_START,
            served.home / "node.log",
        )
        yield node_id
    finally:
        for process in started:
            process.kill()
            process.wait()

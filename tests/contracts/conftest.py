"""A real Anvil, started once, with a registry on it; each test finds it as the first one did."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.account import LocalSigner
from contracts.anvil import Anvil, start_anvil
from contracts.chain_reader import Confirmations
from contracts.development_chain import fund
from contracts.json_rpc import JsonRpc, RpcRefused
from contracts.registry import RegistryClient, deploy
from genkd.provenance.profile import NodeProfile, make_profile
from genkd.provenance.record import (
    ZERO_HASH,
    Revocation,
    Rotation,
    StudentRecord,
    TeacherMessage,
    TypedMessage,
    key_hash,
)
from genkd.provenance.secp256k1 import address_of, sign_digest
from genkd.provenance.typed_data import Domain, keccak256

MONTH = 30 * 24 * 3600


@dataclass(frozen=True)
class Federation:
    """A registry on a chain, and the keys of those who use it. Alice has committed to a teacher."""

    rpc_url: str
    domain: Domain
    run_id: bytes = keccak256(b"run")
    configuration: bytes = keccak256(b"configuration")
    commitment: bytes = keccak256(b"commitment")
    owner: int = 0x0123
    coordinator: int = 0xC00D
    alice: int = 0xA11CE
    alice_next: int = 0xA11CE2
    bob: int = 0xB0B
    stranger: int = 0x5742
    p256: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.derive_private_key(0x256, ec.SECP256R1())
    )

    @property
    def rpc(self) -> JsonRpc:
        return JsonRpc(self.rpc_url)

    def client(self, secret: int, confirmations: Confirmations = 0) -> RegistryClient:
        signer = LocalSigner(secret)
        return RegistryClient(self.rpc_url, self.domain, signer=signer, confirmations=confirmations)

    def sign(self, secret: int, message: TypedMessage) -> bytes:
        return sign_digest(secret, message.digest(self.domain))

    def profile(self, secret: int, following: int | None = None) -> NodeProfile:
        following_hash = ZERO_HASH if following is None else key_hash(address_of(following))
        return make_profile(secret, self.p256, ZERO_HASH, following_hash)

    def now(self) -> int:
        block = self.rpc.ask("eth_getBlockByNumber", "latest", False)
        return self.rpc.as_quantity(block["timestamp"])

    def student(self, secret: int, **changes: object) -> StudentRecord:
        record = StudentRecord(
            file_hash=keccak256(b"file"),
            tensor_root=keccak256(b"tensors"),
            metadata_hash=keccak256(b"metadata"),
            teacher_commitment=self.commitment,
            run_id=self.run_id,
            parents_root=keccak256(b"parents"),
            node=address_of(secret),
            round=7,
            deadline=self.now() + MONTH,
        )
        return replace(record, **changes)  # type: ignore[arg-type]

    def teacher(self, secret: int, commitment: bytes | None = None) -> TeacherMessage:
        return TeacherMessage(commitment or self.commitment, address_of(secret), self.now() + MONTH)

    def rotation(self, old: int, new: int, following: int | None = None) -> Rotation:
        profile = self.profile(new, following)
        return Rotation(
            address_of(old),
            address_of(new),
            profile.message.next_key_hash,
            profile.profile_hash(),
            self.now() + MONTH,
        )

    def revocation(self, secret: int, record_id: bytes, reason: int = 2) -> Revocation:
        return Revocation(record_id, reason, address_of(secret))

    def register(self, secret: int, record: StudentRecord) -> bytes:
        """Have a stranger carry a node's record to the chain; its id."""
        self.client(self.stranger).register(record, self.sign(secret, record))
        return record.digest(self.domain)

    def lying(self, tamper: Tamper) -> AbstractContextManager[str]:
        """An endpoint of this chain that lies."""
        return lying(self.rpc, tamper)

    def mine(self, blocks: int = 1, seconds: int = 0) -> None:
        if seconds:
            self.rpc.ask("evm_increaseTime", hex(seconds))
        self.rpc.ask("anvil_mine", hex(blocks))


Tamper = Callable[[str, list[Any], Any], Any]


@contextmanager
def lying(rpc: JsonRpc, tamper: Tamper) -> Iterator[str]:
    """An endpoint that passes questions on, and answers what `tamper(method, params, result)` says.

    It may raise `RpcRefused` to refuse.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = {"jsonrpc": "2.0", "id": question["id"]}
            try:
                result = rpc.ask(question["method"], *question["params"])
                answer["result"] = tamper(question["method"], question["params"], result)
            except RpcRefused as error:
                answer["error"] = {"code": error.rpc_code, "message": str(error)}
                answer["error"]["data"] = "0x" + error.data.hex()
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def anvil() -> Iterator[Anvil]:
    with start_anvil() as chain:
        yield chain


@pytest.fixture(scope="session")
def deployed(anvil: Anvil) -> Federation:
    everyone = Federation(anvil.rpc_url, Domain(anvil.chain_id, "0x" + "0" * 40))
    for secret in (everyone.owner, everyone.coordinator, everyone.alice, everyone.stranger):
        fund(anvil.rpc_url, address_of(secret))
    owner = LocalSigner(everyone.owner)
    domain, _ = deploy(anvil.rpc_url, anvil.chain_id, owner, owner=owner.address)
    federation = replace(everyone, domain=domain)
    client = federation.client(federation.owner)
    for secret, following in ((federation.alice, federation.alice_next), (federation.bob, None)):
        profile = federation.profile(secret, following)
        client.add_node(profile.node, profile.message.next_key_hash, profile.profile_hash())
    client.open_run(federation.run_id, address_of(federation.coordinator), federation.configuration)
    message = federation.teacher(federation.alice)
    client.commit_teacher(message, federation.sign(federation.alice, message))
    return federation


@pytest.fixture
def federation(deployed: Federation) -> Iterator[Federation]:
    """The federation above; what a test does to it is undone."""
    snapshot = deployed.rpc.ask("evm_snapshot")
    yield deployed
    assert deployed.rpc.ask("evm_revert", snapshot) is True

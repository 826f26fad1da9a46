"""Two nodes, a coordinator and a chain in memory: to release students, and to forge them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.anvil import start_anvil
from contracts.development_chain import fund
from contracts.refusals import KeyRefusedByRegistry, RegistryRefused
from contracts.registry import RegistryClient, deploy
from contracts.registry_state import RegistryState
from genkd.canonical import canonical_json
from genkd.provenance import keystore
from genkd.provenance.chain import Answer, Block, Entry
from genkd.provenance.draft import Draft, build_release
from genkd.provenance.memory_chain import MemoryChain, Reverted
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import NodeProfile, make_profile
from genkd.provenance.receipt import Inclusion, Receipt
from genkd.provenance.record import (
    Revocation,
    Rotation,
    StudentRecord,
    TeacherMessage,
    commit_to_teacher,
    key_hash,
)
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.typed_data import Domain, keccak256
from genkd.provenance.verification import Policy

REGISTRY = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
RUN = keccak256(b"run")
CARD = {
    "v": 1,
    "architecture": "resnet8-half",
    "num_classes": 10,
    "input": {"height": 32, "width": 32, "channels": 1, "mean": ["0.5"], "std": ["0.25"]},
    "class_names": None,
    "description": "",
}


def model_file(
    values: np.ndarray | None = None,
    *,
    seed: int = 0,
    metadata: Mapping[str, object] | None = None,
) -> bytes:
    """A small model file of this project, written without torch."""
    if values is None:
        values = np.random.default_rng(seed).standard_normal((4, 3)).astype("<f4")
    texts = {"v": 1, "card": CARD} if metadata is None else metadata
    header = {
        "__metadata__": {"genkd": canonical_json(texts).decode()},
        "fc.weight": {
            "dtype": "F32",
            "shape": list(values.shape),
            "data_offsets": [0, values.nbytes],
        },
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + values.tobytes()


def node_keys(secret: int, *, signing_secret: int | None = None) -> NodeKeys:
    """A node's keys, made without a key file. The key after `secret` is `secret + 1`."""
    signing_key = ec.derive_private_key(signing_secret or secret + 1000, ec.SECP256R1())
    profile = make_profile(secret, signing_key, bytes(32), key_hash(address_of(secret + 1)))
    return NodeKeys(secret, signing_key, profile)


class AnvilChain:
    """A registry on a real Anvil, written to and read like a `MemoryChain`."""

    def __init__(self, rpc_url: str, domain: Domain, owner: NodeKeys) -> None:
        self.rpc_url = rpc_url
        self.domain = domain
        self.state = RegistryState(rpc_url, domain, confirmations=0)
        self.client = self.client_of(owner)

    def client_of(self, sender: NodeKeys) -> RegistryClient:
        return RegistryClient(self.rpc_url, self.domain, signer=sender, confirmations=0)

    @property
    def now(self) -> int:
        return self.state.head("latest").timestamp

    @property
    def height(self) -> int:
        return self.state.head("latest").number

    def mine(self, seconds: int = 1) -> None:
        self.state.rpc.ask("evm_increaseTime", hex(seconds))
        self.state.rpc.ask("anvil_mine", "0x1")

    def transaction(self, number: int) -> bytes:
        block = self.block(number)
        assert block is not None
        (only,) = block.transactions
        return only

    def reorganise(self, depth: int) -> None:
        self.state.rpc.ask("anvil_reorg", depth, [])

    def _write(self, call: Callable[[], object]) -> None:
        # Two blocks of one second could not be told apart by their time.
        self.state.rpc.ask("evm_increaseTime", "0x1")
        try:
            call()
        except (RegistryRefused, KeyRefusedByRegistry) as error:
            raise Reverted(error.reason) from error

    def add_node(self, profile: NodeProfile) -> None:
        following = profile.message.next_key_hash
        self._write(lambda: self.client.add_node(profile.node, following, profile.profile_hash()))

    def remove_node(self, key: str, until: int) -> None:
        self._write(lambda: self.client.remove_node(key, until))

    def rotate(self, rotation: Rotation, profile: NodeProfile, signature: bytes) -> None:
        self._write(lambda: self.client.rotate(rotation, signature))

    def open_run(self, run_id: bytes, coordinator: str) -> None:
        self._write(lambda: self.client.open_run(run_id, coordinator, bytes(32)))

    def commit_teacher(self, message: TeacherMessage, signature: bytes) -> None:
        self._write(lambda: self.client.commit_teacher(message, signature))

    def register(self, record: StudentRecord, signature: bytes) -> bytes:
        self._write(lambda: self.client.register(record, signature))
        return record.digest(self.domain)

    def commit_round(self, run_id: bytes, number: int, root: bytes, sender: NodeKeys) -> None:
        client = self.client_of(sender)
        self._write(lambda: client.commit_round(run_id, number, root, 1, bytes(32)))

    def revoke(self, message: Revocation, signature: bytes) -> None:
        self._write(lambda: self.client.revoke(message, signature))

    def revoke_as_owner(self, record_id: bytes, reason: int) -> None:
        self._write(lambda: self.client.revoke_as_owner(record_id, reason))

    # --- `ChainReader` ---

    def chain_id(self) -> int:
        return self.state.chain_id()

    def fault_of_contract(self) -> str | None:
        return self.state.fault_of_contract()

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        return self.state.look_up(record, signature, proof)

    def block(self, number: int) -> Block | None:
        return self.state.block(number)

    def entries(self, record_ids: Sequence[bytes]) -> Sequence[Entry | None]:
        return self.state.entries(record_ids)


@dataclass
class Workshop:
    """Everything one test needs to release students and to forge them.

    Attributes:
        folder: Where release directories appear.
        chain: A registry with `node` and `other` enrolled and both runs open.
        node: The honest node.
        other: Another enrolled node, the attacker of most tests.
        coordinator: The keys that commit rounds.
    """

    folder: Path
    chain: MemoryChain | AnvilChain
    node: NodeKeys
    other: NodeKeys
    coordinator: NodeKeys
    seed: int = field(default=0)

    @property
    def policy(self) -> Policy:
        return Policy(self.chain.domain)

    def commitment(self, keys: NodeKeys, teacher: bytes = b"teacher") -> bytes:
        return commit_to_teacher(keys.address, keccak256(teacher), keccak256(b"salt"))

    def commit_teacher(self, keys: NodeKeys, teacher: bytes = b"teacher") -> None:
        commitment = self.commitment(keys, teacher)
        message = TeacherMessage(commitment, keys.address, self.chain.now + 3600)
        self.chain.commit_teacher(message, keys.sign(message, self.chain.domain))

    def draft(self, keys: NodeKeys | None = None, **changes: object) -> Draft:
        """A draft of a student nobody has released yet."""
        self.seed += 1
        draft = Draft(
            student=model_file(seed=self.seed),
            domain=self.chain.domain,
            run_id=RUN,
            round=1,
            parents=(),
            teacher_commitment=self.commitment(keys or self.node),
            recipe={"name": "quick", "batch": 64, "temperature": "4"},
            evaluation={"top1": "0.81"},
            version="0.1.0",
            deadline=self.chain.now + 3600,
        )
        return replace(draft, **changes)  # type: ignore[arg-type]

    def sign(
        self, keys: NodeKeys | None = None, folder: Path | None = None, **changes: object
    ) -> Path:
        """A release that is signed and not recorded."""
        keys = keys or self.node
        return build_release(folder or self.folder, self.draft(keys, **changes), keys)

    def publish(
        self, keys: NodeKeys | None = None, folder: Path | None = None, **changes: object
    ) -> Path:
        """A release that is recorded on the single path."""
        path = self.sign(keys, folder, **changes)
        receipt = self.receipt(path)
        self.chain.register(receipt.record, receipt.signature)
        self.include(path)
        return path

    def include(self, path: Path, proof: tuple[bytes, ...] | None = None) -> None:
        """Write into a receipt that the newest block recorded it."""
        block = self.chain.height
        inclusion = Inclusion(self.chain.transaction(block), block, proof)
        self.rewrite(path, replace(self.receipt(path), inclusion=inclusion))

    def commit_round(self, *paths: Path, round_number: int = 1) -> MerkleTree:
        """Record releases by one root."""
        ids = [self.receipt(path).record_id() for path in paths]
        tree = MerkleTree(ids)
        self.chain.commit_round(RUN, round_number, tree.root, self.coordinator)
        for path, record_id in zip(paths, ids, strict=True):
            self.include(path, tree.proof(record_id))
        return tree

    @staticmethod
    def node_keys(secret: int) -> NodeKeys:
        return node_keys(secret)

    def rotate_node(self) -> NodeKeys:
        """The node's next key takes over."""
        new = node_keys(0xA11CE + 1)
        rotation = Rotation(
            self.node.address,
            new.address,
            new.profile.message.next_key_hash,
            new.profile.profile_hash(),
            self.chain.now + 3600,
        )
        self.chain.rotate(rotation, new.profile, new.sign(rotation, self.chain.domain))
        return new

    def node_with_another_signing_key(self) -> NodeKeys:
        """The node's Ethereum key, with a P-256 key and a profile that were never enrolled."""
        return node_keys(0xA11CE, signing_secret=7)

    @staticmethod
    def receipt(path: Path) -> Receipt:
        return Receipt.from_bytes((path / "receipt.json").read_bytes())

    @staticmethod
    def rewrite(path: Path, receipt: Receipt) -> None:
        (path / "receipt.json").write_bytes(receipt.to_bytes())

    def rename(self, path: Path) -> Path:
        """Move a forged release to the directory its record asks for."""
        target = path.parent / f"student-0x{self.receipt(path).record_id().hex()}"
        if target != path:
            shutil.move(path, target)
        return target


@pytest.fixture(scope="session")
def all_keys() -> tuple[NodeKeys, NodeKeys, NodeKeys]:
    return node_keys(0xA11CE), node_keys(0xB0B), node_keys(0xC0FFEE)


def furnish(workshop: Workshop) -> Workshop:
    """Open the run, enrol both nodes, commit their teachers."""
    workshop.chain.open_run(RUN, workshop.coordinator.address)
    for keys in (workshop.node, workshop.other):
        workshop.chain.add_node(keys.profile)
        workshop.commit_teacher(keys)
    return workshop


@pytest.fixture
def new_workshop(
    tmp_path: Path, all_keys: tuple[NodeKeys, NodeKeys, NodeKeys]
) -> Callable[..., Workshop]:
    def make(confirmations: int = 0) -> Workshop:
        domain, owner = Domain(31337, REGISTRY), all_keys[2].address
        chain = MemoryChain(domain, owner=owner, confirmations=confirmations)
        return furnish(Workshop(tmp_path / "releases", chain, *all_keys))

    return make


@pytest.fixture
def workshop(new_workshop: Callable[..., Workshop]) -> Workshop:
    return new_workshop()


@pytest.fixture(scope="session")
def anvil_chain(all_keys: tuple[NodeKeys, NodeKeys, NodeKeys]) -> Iterator[AnvilChain]:
    """A real Anvil with the registry, owned by the coordinator."""
    owner = all_keys[2]
    with start_anvil() as anvil:
        for keys in all_keys:
            fund(anvil.rpc_url, keys.address)
        domain, _ = deploy(anvil.rpc_url, anvil.chain_id, owner, owner=owner.address)
        yield AnvilChain(anvil.rpc_url, domain, owner)


@pytest.fixture
def anvil_workshop(
    tmp_path: Path, anvil_chain: AnvilChain, all_keys: tuple[NodeKeys, NodeKeys, NodeKeys]
) -> Iterator[Workshop]:
    """As `workshop`, on a real Anvil; what a test does to it is undone."""
    snapshot = anvil_chain.state.rpc.ask("evm_snapshot")
    yield furnish(Workshop(tmp_path / "releases", anvil_chain, *all_keys))
    assert anvil_chain.state.rpc.ask("evm_revert", snapshot) is True


@pytest.fixture
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key files at a 64th of their cost: what is tested does not depend on it."""
    monkeypatch.setattr(keystore, "SCRYPT_N", 2**12)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests write thousands of files and pull no plug; `test_durable` tests the flushing."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

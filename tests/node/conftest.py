"""A finished run, a node's key folder, and a federation on a real Anvil that admitted it."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from contracts.account import LocalSigner
from contracts.anvil import Anvil, start_anvil
from contracts.development_chain import fund
from contracts.json_rpc import JsonRpc
from contracts.registry import RegistryClient, deploy
from contracts.registry_state import RegistryState
from genkd.canonical import canonical_json
from genkd.provenance import keystore
from genkd.provenance.keys import KeyFolder
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.passphrase import Passphrase
from genkd.provenance.record import run_id_of
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.typed_data import Domain

PASSPHRASE = "correct horse battery"
OWNER = 0x0123
RUN = "spring"
CHEAP_SCRYPT_N = 2**12
CARD = {
    "v": 1,
    "architecture": "resnet8-half",
    "num_classes": 10,
    "input": {"height": 32, "width": 32, "channels": 1, "mean": ["0.5"], "std": ["0.25"]},
    "class_names": None,
    "description": "",
}


def student_bytes(seed: int) -> bytes:
    header = {
        "__metadata__": {"genkd": canonical_json({"v": 1, "card": CARD}).decode()},
        "fc.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + struct.pack("<2f", seed, 0.5)


def write_run(folder: Path, *, seed: int = 1, teacher: bytes = b"teacher") -> Path:
    """What distill leaves, as far as publishing reads it."""
    folder.mkdir(parents=True)
    student = student_bytes(seed)
    (folder / "genkd-run.lock").touch()
    (folder / "student.safetensors").write_bytes(student)
    result = {
        "schema_version": 1,
        "seed": 2**60,
        "recipe": {"budget": "30m", "batch": 256, "generator_rate": 4e-3, "energy": True},
        "teacher": {"sha256": hashlib.sha256(teacher).hexdigest()},
        "student": {"sha256": hashlib.sha256(student).hexdigest()},
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "evaluation.json").write_text(
        json.dumps({"images": 1000, "top1": 0.81, "teacher_top1": 0.9})
    )
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Path]:
    return lambda name, **values: write_run(tmp_path / name, **values)


@pytest.fixture(scope="session")
def made_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key folder, made once."""
    folder = tmp_path_factory.mktemp("home") / "keys"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keystore, "SCRYPT_N", CHEAP_SCRYPT_N)
        KeyFolder(folder).create(Passphrase(PASSPHRASE))
    return folder


@pytest.fixture
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystore, "SCRYPT_N", CHEAP_SCRYPT_N)


@pytest.fixture
def key_folder(made_keys: Path, tmp_path: Path, cheap_scrypt: None) -> KeyFolder:
    """A copy of it that a test may change."""
    return KeyFolder(Path(shutil.copytree(made_keys, tmp_path / "keys")))


@pytest.fixture
def keys(key_folder: KeyFolder) -> NodeKeys:
    return key_folder.unlock(Passphrase(PASSPHRASE))


@dataclass(frozen=True)
class Federation:
    """A registry that admitted the node and opened the run `spring`.

    Attributes:
        rpc_url: The chain's endpoint.
        domain: The registry.
        owner: Its owner's client, who coordinates the run.
        state: The registry as a reader sees it.
    """

    rpc_url: str
    domain: Domain
    owner: RegistryClient
    state: RegistryState

    @property
    def rpc(self) -> JsonRpc:
        return self.state.rpc

    def client(self, signer: NodeKeys) -> RegistryClient:
        return RegistryClient(self.rpc_url, self.domain, signer=signer, confirmations=0)

    def registrations(self) -> list[str]:
        """The record ids registered by themselves, ever, as the logs have them."""
        logs = self.rpc.ask(
            "eth_getLogs", {"address": self.domain.contract, "fromBlock": "0x0", "topics": []}
        )
        # StudentRegistered is the only event of three indexed members with a body of nine words.
        return [
            log["topics"][1]
            for log in logs
            if len(log["topics"]) == 4 and len(log["data"]) == 2 + 64 * 9
        ]

    def pass_time(self, seconds: int) -> None:
        self.rpc.ask("evm_increaseTime", hex(seconds))
        self.rpc.ask("anvil_mine", "0x1")


@pytest.fixture(scope="session")
def anvil() -> Iterator[Anvil]:
    with start_anvil() as chain:
        yield chain


@pytest.fixture(scope="session")
def deployed(anvil: Anvil, made_keys: Path) -> Federation:
    owner = LocalSigner(OWNER)
    profile = KeyFolder(made_keys).profile()
    for address in (owner.address, profile.node):
        fund(anvil.rpc_url, address)
    domain, _ = deploy(anvil.rpc_url, anvil.chain_id, owner, owner=address_of(OWNER))
    client = RegistryClient(anvil.rpc_url, domain, signer=owner, confirmations=0)
    client.add_node(profile.node, profile.message.next_key_hash, profile.profile_hash())
    client.open_run(run_id_of(RUN), owner.address, bytes(32))
    return Federation(anvil.rpc_url, domain, client, client.state)


@pytest.fixture
def federation(deployed: Federation) -> Iterator[Federation]:
    """The federation above; what a test does to it is undone."""
    snapshot = deployed.rpc.ask("evm_snapshot")
    yield deployed
    assert deployed.rpc.ask("evm_revert", snapshot) is True

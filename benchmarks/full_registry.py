"""A registry on a chain that holds thousands of students, and releases recorded on it.

    registry = FullRegistry(anvil.rpc_url, anvil.chain_id, folder)
    gas = registry.fill(10_000)
    path = registry.publish()

For the benchmarks: what each call cost is kept in `gas`.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import save

from contracts.abi import encode_call
from contracts.account import LocalSigner, Written
from contracts.development_chain import fund
from contracts.json_rpc import JsonRpc
from contracts.registry import RegistryClient, deploy
from genkd.canonical import canonical_json
from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.provenance.draft import Draft, build_release
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import make_profile
from genkd.provenance.receipt import Inclusion, Receipt
from genkd.provenance.record import (
    ZERO_HASH,
    Revocation,
    StudentRecord,
    TeacherMessage,
    commit_to_teacher,
    key_hash,
)
from genkd.provenance.release import RECEIPT_NAME
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.typed_data import NAME, VERSION, Domain, keccak256, members

# Anvil's first account, the same everywhere: Anvil holds its key and so can sign for it, which
# spares Python ten thousand signatures.
NODE_SECRET = 0xAC0974BEC39A17E36BA4A6B4D238FF944BACB478CBED5EFCAE784D7BF4F2FF80
OWNER_SECRET, COORDINATOR_SECRET = 0x0123, 0xC00D
RUN_ID = keccak256(b"benchmark")
MONTH = 30 * 24 * 3600
STUDENT_FLOATS = 2**20 // 4
GAS_LIMIT_OF_REGISTER = 120_000
MOST_IN_A_BATCH = 200


class FullRegistry:
    """A registry on a fresh chain with one node, whose first calls are already measured.

    Args:
        rpc_url: Of an Anvil.
        chain_id: Its chain id.
        folder: Where releases appear.
    """

    def __init__(self, rpc_url: str, chain_id: int, folder: Path) -> None:
        self.rpc = JsonRpc(rpc_url, timeout=60)
        self.rpc_url = rpc_url
        self.folder = folder
        owner, coordinator = LocalSigner(OWNER_SECRET), LocalSigner(COORDINATOR_SECRET)
        for signer in (owner, coordinator):
            fund(rpc_url, signer.address)
        self.domain, deployed = deploy(rpc_url, chain_id, owner, owner=owner.address)
        self.keys = _node_keys()
        self.owner = self._client(owner)
        self.coordinator = self._client(coordinator)
        # Dearer than the node itself by the look at an account that the transaction did not name.
        self.relayer = self.owner
        profile = self.keys.profile
        self.commitment = commit_to_teacher(self.keys.address, keccak256(b"teacher"), ZERO_HASH)
        teacher = TeacherMessage(self.commitment, self.keys.address, self.deadline())
        self.gas = {
            "deploy": deployed.gas,
            "addNode": self.owner.add_node(
                profile.node, profile.message.next_key_hash, profile.profile_hash()
            ).gas,
            "openRun": self.owner.open_run(RUN_ID, coordinator.address, keccak256(b"recipe")).gas,
            "commitTeacher": self.relayer.commit_teacher(
                teacher, self.keys.sign(teacher, self.domain)
            ).gas,
        }
        self._month = self.deadline()
        self.mine(1)

    def _client(self, signer: LocalSigner) -> RegistryClient:
        return RegistryClient(self.rpc_url, self.domain, signer=signer, confirmations=0)

    def deadline(self) -> int:
        """A month from the chain's now, Unix seconds."""
        return self.rpc.as_quantity(self._latest()["timestamp"]) + MONTH

    def _latest(self) -> dict[str, Any]:
        block: dict[str, Any] = self.rpc.ask("eth_getBlockByNumber", "latest", False)
        return block

    def mine(self, blocks: int) -> None:
        """So many empty blocks, a second apart: no two that matter share their time."""
        self.rpc.ask("anvil_mine", hex(blocks), "0x1")

    def record(self, number: int) -> StudentRecord:
        """A record of a student that nobody has, distinct by its number."""
        name = number.to_bytes(8, "big")
        return StudentRecord(
            file_hash=keccak256(b"file" + name),
            tensor_root=keccak256(b"tensors" + name),
            metadata_hash=keccak256(b"metadata" + name),
            teacher_commitment=self.commitment,
            run_id=RUN_ID,
            parents_root=ZERO_HASH,
            node=self.keys.address,
            round=0,
            deadline=self._month,
        )

    def fill(self, count: int) -> int:
        """Register so many students, each by a transaction of its own.

        Returns:
            The gas all of them used.
        """
        self.rpc.ask("evm_setAutomine", False)
        gas = 0
        block_limit = int(self._latest()["gasLimit"], 16)
        size = min(MOST_IN_A_BATCH, block_limit // GAS_LIMIT_OF_REGISTER)
        for start in range(0, count, size):
            records = [self.record(one) for one in range(start, min(start + size, count))]
            self._send_registrations(records)
            self.rpc.ask("evm_mine")
            mined = self._latest()
            if len(mined["transactions"]) != len(records):
                raise SystemExit(f"only {len(mined['transactions'])} of {len(records)} were mined")
            gas += int(mined["gasUsed"], 16)
        self.rpc.ask("evm_setAutomine", True)
        held = self._entries_held(count)
        if held != count:
            raise SystemExit(f"the registry holds {held} of {count} records")
        return gas

    def _send_registrations(self, records: Sequence[StudentRecord]) -> None:
        sender = self.keys.address
        signatures = self._batch(
            ("eth_signTypedData_v4", [sender, _typed_data(one, self.domain)]) for one in records
        )
        nonce = self.rpc.quantity("eth_getTransactionCount", sender, "latest")
        calls = []
        for i, (record, signature) in enumerate(zip(records, signatures, strict=True)):
            values = list(vars(record).values())
            data = encode_call("register", values, bytes.fromhex(signature[2:]))
            transaction = {
                "from": sender,
                "to": self.domain.contract,
                "data": "0x" + data.hex(),
                "gas": hex(GAS_LIMIT_OF_REGISTER),
                "nonce": hex(nonce + i),
                "maxFeePerGas": hex(500 * 10**9),
                "maxPriorityFeePerGas": "0x0",
            }
            calls.append(("eth_sendTransaction", [transaction]))
        self._batch(calls)

    def _batch(self, calls: Iterable[tuple[str, Any]]) -> list[Any]:
        """Many questions in one request: `JsonRpc` asks one at a time, as verifying does."""
        questions = [
            {"jsonrpc": "2.0", "id": i, "method": method, "params": params}
            for i, (method, params) in enumerate(calls)
        ]
        request = urllib.request.Request(  # noqa: S310 (our own Anvil)
            self.rpc_url, json.dumps(questions).encode(), {"Content-Type": "application/json"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=120) as response:
            answers = sorted(json.load(response), key=lambda answer: answer["id"])
        for answer in answers:
            if "result" not in answer:
                raise SystemExit(f"Anvil refuses: {answer['error']}")
        return [answer["result"] for answer in answers]

    def _entries_held(self, count: int) -> int:
        ids = [self.record(number).digest(self.domain) for number in range(count)]
        return sum(entry is not None for entry in self.relayer.state.entries(ids))

    # -------------------------------------------------------------- releases

    def release(self, round_number: int) -> tuple[Path, Receipt]:
        """A student of 1 MB, signed and not yet recorded."""
        draft = Draft(
            student=student_file(round_number),
            domain=self.domain,
            run_id=RUN_ID,
            round=round_number,
            parents=(),
            teacher_commitment=self.commitment,
            recipe={"name": "benchmark"},
            evaluation={"top1": "0.9"},
            version="0.1.0",
            deadline=self.deadline(),
        )
        path = build_release(self.folder, draft, self.keys)
        return path, Receipt.from_bytes((path / RECEIPT_NAME).read_bytes())

    def publish(self) -> Path:
        """A release that is registered by itself; its gas is kept."""
        path, receipt = self.release(0)
        written = self.relayer.register(receipt.record, receipt.signature)
        self.gas["register"] = written.gas
        return self._include(path, receipt, written, None)

    def publish_in_round(self, size: int) -> Path:
        """A release that is recorded as one of so many in a round; its gas is kept."""
        path, receipt = self.release(1)
        others = [keccak256(b"other" + i.to_bytes(8, "big")) for i in range(size - 1)]
        tree = MerkleTree([receipt.record_id(), *others])
        written = self.coordinator.commit_round(RUN_ID, 1, tree.root, size, ZERO_HASH)
        self.gas["commitRound"] = written.gas
        return self._include(path, receipt, written, tree.proof(receipt.record_id()))

    def revoke_one(self) -> None:
        """Take a record back; its gas is kept."""
        message = Revocation(self.record(0).digest(self.domain), 2, self.keys.address)
        self.gas["revokeFor"] = self.relayer.revoke(
            message, self.keys.sign(message, self.domain)
        ).gas

    def _include(
        self, path: Path, receipt: Receipt, written: Written, proof: tuple[bytes, ...] | None
    ) -> Path:
        inclusion = Inclusion(written.transaction or b"", written.block or 0, proof)
        (path / RECEIPT_NAME).write_bytes(replace(receipt, inclusion=inclusion).to_bytes())
        self.mine(1)
        return path


def _node_keys() -> NodeKeys:
    signing_key = ec.generate_private_key(ec.SECP256R1())
    next_key = key_hash(address_of(NODE_SECRET + 1))
    profile = make_profile(NODE_SECRET, signing_key, ZERO_HASH, next_key)
    return NodeKeys(NODE_SECRET, signing_key, profile)


def _typed_data(record: StudentRecord, domain: Domain) -> dict[str, object]:
    """A record as `eth_signTypedData_v4` takes it: hashed by Anvil's code, not by ours."""
    of_domain = {
        **{"name": "string", "version": "string"},
        **{"chainId": "uint256", "verifyingContract": "address"},
    }
    return {
        "types": {
            "EIP712Domain": [{"name": name, "type": kind} for name, kind in of_domain.items()],
            "Student": [{"name": name, "type": kind} for kind, name in members(record.TYPE)],
        },
        "primaryType": "Student",
        "domain": {
            "name": NAME,
            "version": VERSION,
            "chainId": domain.chain_id,
            "verifyingContract": domain.contract,
        },
        "message": record.to_json(),
    }


def student_file(seed: int) -> bytes:
    """A model file of 1 MB in 24 tensors, as many as a ResNet-8 has."""
    random = np.random.default_rng(seed)
    tensors = {
        f"layer{i}.weight": random.standard_normal(STUDENT_FLOATS // 24, dtype=np.float32)
        for i in range(24)
    }
    card = ModelCard(ModelSpec("resnet8", 10, 1), InputCard(32, 32, 1, (0.5,), (0.25,)), None, "")
    texts = canonical_json({"v": 1, "card": card_to_json(card)}).decode()
    return save(tensors, metadata={"genkd": texts})

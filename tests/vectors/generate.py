"""Write the published vectors: `python tests/vectors/generate.py` (and compare with git).

Everything is derived from fixed keys, fixed weights and deterministic signatures (RFC 6979), so a
second run writes the same bytes. Another implementation is right if it reproduces them.
"""

from __future__ import annotations

import base64
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from genkd.canonical import canonical_json
from genkd.digest import sha256_bytes, tensor_root
from genkd.provenance.draft import Draft, build_release
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import make_profile
from genkd.provenance.receipt import Receipt
from genkd.provenance.record import (
    Acknowledgement,
    ProfileMessage,
    Revocation,
    Rotation,
    StudentRecord,
    TeacherMessage,
    TypedMessage,
    commit_to_teacher,
    key_hash,
    parents_root,
)
from genkd.provenance.secp256k1 import N, address_of, sign_digest
from genkd.provenance.typed_data import PROFILE_SEPARATOR, Domain, keccak256, to_hex

HERE = Path(__file__).parent
# Never use these keys for anything else: everybody knows them.
NODE_SECRET, NEXT_SECRET, SIGNING_SECRET = 0xA11CE, 0xA11CE2, 0x5160
DOMAIN = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
RUN_ID = keccak256(b"genkd vectors: run")
SALT = keccak256(b"genkd vectors: salt")
TEACHER = bytes.fromhex(sha256_bytes(b"genkd vectors: teacher"))
DEADLINE = 4_102_444_800  # 2100-01-01
CARD = {
    "v": 1,
    "architecture": "resnet8-half",
    "num_classes": 10,
    "input": {"height": 32, "width": 32, "channels": 1, "mean": ["0.5"], "std": ["0.25"]},
    "class_names": None,
    "description": "",
}


def student() -> bytes:
    """A model file of two tensors: 2x3 float32 and 3 int64."""
    weight = struct.pack("<6f", 0.5, -1.25, 2.0, 0.0, 3.5, -0.125)
    steps = struct.pack("<3q", 1, 2, 3)
    header = {
        "__metadata__": {"genkd": canonical_json({"v": 1, "card": CARD}).decode()},
        "bn.steps": {"dtype": "I64", "shape": [3], "data_offsets": [0, 24]},
        "fc.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 48]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + steps + weight


def keys() -> NodeKeys:
    signing_key = ec.derive_private_key(SIGNING_SECRET, ec.SECP256R1())
    following = key_hash(address_of(NEXT_SECRET))
    return NodeKeys(
        NODE_SECRET, signing_key, make_profile(NODE_SECRET, signing_key, bytes(32), following)
    )


def messages() -> list[TypedMessage]:
    node, following = address_of(NODE_SECRET), address_of(NEXT_SECRET)
    numbered = [bytes([i]) * 32 for i in range(8)]
    commitment = commit_to_teacher(node, TEACHER, SALT)
    return [
        StudentRecord(*numbered[1:4], commitment, RUN_ID, bytes(32), node, 7, DEADLINE),
        TeacherMessage(commitment, node, DEADLINE),
        Revocation(numbered[1], 2, node),
        Rotation(node, following, numbered[2], numbered[3], DEADLINE),
        Acknowledgement(numbered[1], RUN_ID, 7, 1_800_000_000),
    ]


def signed(message: TypedMessage, digest: bytes) -> dict[str, Any]:
    signature = sign_digest(NODE_SECRET, digest)
    s = N - int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])
    return {
        "type": message.TYPE,
        "message": message.to_json(),
        "digest": to_hex(digest),
        "signature": to_hex(signature),
        "refuse": {"high-s twin": to_hex(twin), "other parity": to_hex(_other_parity(signature))},
    }


def _other_parity(signature: bytes) -> bytes:
    return signature[:64] + bytes([55 - signature[64]])


def trees() -> list[dict[str, Any]]:
    found = []
    for count in (1, 2, 3, 5, 8):
        ids = [keccak256(bytes([count, i])) for i in range(count)]
        tree = MerkleTree(ids)
        proofs = [[to_hex(one) for one in tree.proof(record_id)] for record_id in ids]
        found.append(
            {"recordIds": [to_hex(i) for i in ids], "root": to_hex(tree.root), "proofs": proofs}
        )
    return found


def draft(node: NodeKeys) -> Draft:
    return Draft(
        student=student(),
        domain=DOMAIN,
        run_id=RUN_ID,
        round=7,
        parents=(bytes([1]) * 32, bytes([2]) * 32),
        teacher_commitment=commit_to_teacher(node.address, TEACHER, SALT),
        recipe={"name": "quick", "batch": 256, "learning_rate": "0.004", "mixup": True},
        evaluation={"top1": "0.8123", "ece": "0.021"},
        version="0.1.0",
        deadline=DEADLINE,
    )


def vectors(receipt: Receipt) -> dict[str, Any]:
    node = keys()
    profile: ProfileMessage = node.profile.message
    return {
        "keys": {
            "warning": "published: use them for nothing else",
            "ethereumSecret": hex(NODE_SECRET),
            "address": node.address,
            "nextAddress": address_of(NEXT_SECRET),
            "nextKeyHash": to_hex(key_hash(address_of(NEXT_SECRET))),
            "p256Secret": hex(SIGNING_SECRET),
        },
        "domain": {
            "chainId": DOMAIN.chain_id,
            "registry": DOMAIN.contract,
            "separator": to_hex(DOMAIN.separator()),
        },
        "typedData": [signed(message, message.digest(DOMAIN)) for message in messages()],
        "profile": {
            "separator": to_hex(PROFILE_SEPARATOR),
            "type": profile.TYPE,
            "message": profile.to_json(),
            "hash": to_hex(profile.profile_hash()),
            "file": node.profile.to_json(),
        },
        "teacherCommitment": {
            "sha256": to_hex(TEACHER),
            "salt": to_hex(SALT),
            "commitment": to_hex(commit_to_teacher(node.address, TEACHER, SALT)),
        },
        "parentsRoot": [
            {"parents": [], "root": to_hex(parents_root([]))},
            {
                "parents": [to_hex(bytes([i]) * 32) for i in (2, 1)],
                "root": to_hex(parents_root([bytes([2]) * 32, bytes([1]) * 32])),
            },
        ],
        "merkleTrees": trees(),
        "tensorRoot": {
            "file": base64.b64encode(student()).decode(),
            "sha256": sha256_bytes(student()),
            "tensorRoot": tensor_root(student()),
        },
        "release": {
            "directory": f"student-{to_hex(receipt.record_id())}",
            "record": receipt.record.to_json(),
            "recordId": to_hex(receipt.record_id()),
            "signature": to_hex(receipt.signature),
        },
    }


def generate(folder: Path) -> None:
    """Write `vectors.json` and the release directory beside it."""
    for old in folder.glob("student-0x*"):
        shutil.rmtree(old)
    node = keys()
    path = build_release(folder, draft(node), node)
    receipt = Receipt.from_bytes((path / "receipt.json").read_bytes())
    text = json.dumps(vectors(receipt), indent=2) + "\n"
    (folder / "vectors.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

"""A small federation in memory: a coordinator, nodes with memberships on disk, real releases.

    federation.nodes[0].publish(round_number=1)
    with federation.grid() as grid: ...

Releases are truly signed and verified; only the chain is `MemoryRegistry`, and students are a few
numbers under a true model card, so that everything takes milliseconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.acknowledgement import SignedAcknowledgement
from contracts.enrolment import FederationCard
from contracts.exchange import ShareRequest
from coordinator import conversation
from genkd.canonical import canonical_json
from genkd.durable import atomic_write
from genkd.provenance.draft import Draft, build_release
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import make_profile
from genkd.provenance.receipt import Inclusion, Receipt
from genkd.provenance.record import (
    Acknowledgement,
    TeacherMessage,
    commit_to_teacher,
    key_hash,
    run_id_of,
)
from genkd.provenance.release import SIZE_LIMITS
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.typed_data import Domain, keccak256
from node import federation_registry
from node.client_app import app
from node.federation_registry import CARD_FILE
from node.policy import POLICY_FILE, default_policy_text
from tests.federation.local_grid import LocalGrid
from tests.federation.memory_registry import MemoryClient, MemoryRegistry

REGISTRY = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
CHAIN_ID = 31337
RUN = "spring"
APP_SHA256 = "ab" * 32
COORDINATOR = 0xC0FFEE
FIRST_NODE = 0xA11CE
FIRST_NODE_ID = 100
CLASS_NAMES = ("ant", "bee", "cat", "dog")
CARD: Mapping[str, object] = {
    "v": 1,
    "architecture": "resnet8-quarter",
    "num_classes": len(CLASS_NAMES),
    "input": {"height": 16, "width": 16, "channels": 1, "mean": ["0.5"], "std": ["0.25"]},
    "class_names": list(CLASS_NAMES),
    "description": "",
}


def node_keys(secret: int) -> NodeKeys:
    """Keys made without a key file. The key after `secret` is `secret + 1`."""
    signing_key = ec.derive_private_key(secret + 1000, ec.SECP256R1())
    profile = make_profile(secret, signing_key, bytes(32), key_hash(address_of(secret + 1)))
    return NodeKeys(secret, signing_key, profile)


def model_file(
    seed: int = 0,
    *,
    values: np.ndarray | None = None,
    card: Mapping[str, object] = CARD,
    bytes_of_weights: int = 48,
) -> bytes:
    """A model file of this project with one tensor, written without torch."""
    if values is None:
        count = bytes_of_weights // 4
        values = np.random.default_rng(seed).standard_normal(count).astype("<f4")
    header = {
        "__metadata__": {"genkd": canonical_json({"v": 1, "card": card}).decode()},
        "fc.weight": {
            "dtype": "F32",
            "shape": list(values.shape),
            "data_offsets": [0, values.nbytes],
        },
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + values.tobytes()


def files_of(release: Path) -> dict[str, bytes]:
    """The four files of a release directory, by name."""
    return {name: (release / name).read_bytes() for name in SIZE_LIMITS}


def receipt_of(release: Path) -> Receipt:
    return Receipt.from_bytes((release / "receipt.json").read_bytes())


@dataclass
class Signer:
    """Who signs releases: a node, or the coordinator for merged students.

    Attributes:
        keys: The keys.
        chain: The registry.
        run_id: The run.
        seed: Counts the students made.
    """

    keys: NodeKeys
    chain: MemoryRegistry
    run_id: bytes
    seed: int = 0

    @property
    def address(self) -> str:
        return self.keys.address

    @property
    def client(self) -> MemoryClient:
        return MemoryClient(self.chain, self.keys)

    def commitment(self, teacher: bytes = b"teacher") -> bytes:
        return commit_to_teacher(self.address, keccak256(teacher), keccak256(b"salt"))

    def commit_teacher(self, teacher: bytes = b"teacher") -> None:
        message = TeacherMessage(self.commitment(teacher), self.address, self.chain.now + 3600)
        self.client.commit_teacher(message, self.keys.sign(message, self.chain.domain))

    def sign(self, folder: Path, **changes: object) -> Path:
        """A release that is signed and not recorded; `changes` as the fields of `Draft`."""
        self.seed += 1
        draft = Draft(
            student=model_file(hash((self.address, self.seed)) % 2**32),
            domain=self.chain.domain,
            run_id=self.run_id,
            round=1,
            parents=(),
            teacher_commitment=self.commitment(),
            recipe={"name": "quick", "batch": 64, "temperature": "4"},
            evaluation={"top1": "0.81"}
            | {f"competence.{index}": "0.9" for index in range(len(CLASS_NAMES))},
            version="0.1.0",
            deadline=int(time.time()) + 30 * 24 * 3600,
        )
        return build_release(folder, replace(draft, **changes), self.keys)  # type: ignore[arg-type]

    def register(self, release: Path) -> Path:
        """Record a signed release by itself, and write into its receipt where."""
        receipt = receipt_of(release)
        place = self.client.await_record(receipt.record, receipt.signature)
        complete = replace(receipt, inclusion=Inclusion(place.transaction, place.block, None))
        (release / "receipt.json").write_bytes(complete.to_bytes())
        return release


@dataclass
class MemberNode(Signer):
    """A node with a membership on disk.

    Attributes:
        node_id: Its id in the grid.
        folder: Holds its membership and its run directories.
    """

    node_id: int = 0
    folder: Path = field(default=Path())

    @property
    def membership(self) -> Path:
        return self.folder / "membership"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def write_policy(self, **changes: object) -> None:
        values: dict[str, object] = {
            "node": self.address,
            "runs": [RUN],
            "app_sha256": APP_SHA256,
            "releases": [self.runs],
            "seconds_between_answers": 0,
        }
        text = default_policy_text(**(values | changes))  # type: ignore[arg-type]
        # A kept question may be reading it.
        atomic_write(self.membership / POLICY_FILE, text.encode())

    def publish(self, round_number: int = 1, **changes: object) -> Path:
        """What `publish --for-round` leaves: a signed release in a run directory."""
        folder = self.runs / f"run-{self.seed}" / "release"
        return self.sign(folder, round=round_number, **changes)


@dataclass
class MemoryFederation:
    """A run, its coordinator and its nodes.

    Attributes:
        folder: Everything on disk lies here.
        chain: The registry: the run is open, coordinator and nodes are enrolled, their teachers
            committed.
        coordinator: Who merges; owns the registry.
        nodes: The members.
    """

    folder: Path
    chain: MemoryRegistry
    coordinator: Signer
    nodes: list[MemberNode] = field(default_factory=list)

    @property
    def domain(self) -> Domain:
        return self.chain.domain

    @property
    def run_id(self) -> bytes:
        return run_id_of(RUN)

    def add_node(self) -> MemberNode:
        """Enrol another node, with a membership that allows the run."""
        number = len(self.nodes)
        node = MemberNode(
            node_keys(FIRST_NODE + 10 * number),
            self.chain,
            self.run_id,
            node_id=FIRST_NODE_ID + number,
            folder=self.folder / f"node-{number}",
        )
        node.membership.mkdir(parents=True)
        node.runs.mkdir()
        self.coordinator.client.enrol(node.keys.profile)
        node.commit_teacher()
        node.write_policy()
        card = FederationCard(
            self.coordinator.address, CHAIN_ID, REGISTRY, None, 0, APP_SHA256, (RUN,)
        )
        (node.membership / CARD_FILE).write_bytes(card.to_bytes())
        self.nodes.append(node)
        return node

    def grid(self, workers: int = 4) -> LocalGrid:
        """A grid of the nodes, each running the real app on its own membership."""
        return LocalGrid(
            {node.node_id: app for node in self.nodes},
            {node.node_id: {"membership": str(node.membership)} for node in self.nodes},
            workers=workers,
        )

    # ------------------------------------------------------------------ a coordinator's work

    def commit_round(self, *releases: Path, round_number: int = 1) -> dict[Path, Receipt]:
        """Record releases by one root; their complete receipts, not written anywhere."""
        receipts = [receipt_of(release) for release in releases]
        ids = [receipt.record_id() for receipt in receipts]
        tree = MerkleTree(ids)
        place = self.coordinator.client.await_round(
            self.run_id, round_number, tree.root, len(ids), bytes(32)
        )
        return {
            release: replace(
                receipt,
                inclusion=Inclusion(place.transaction, place.block, tree.proof(record_id)),
            )
            for release, receipt, record_id in zip(releases, receipts, ids, strict=True)
        }

    def merge(self, parents: Sequence[Receipt], round_number: int = 1, **changes: object) -> Path:
        """A merged student, signed by the coordinator and recorded."""
        ids = tuple(sorted(parent.record_id() for parent in parents))
        folder = self.folder / "merged" / f"round-{round_number:06d}"
        values = {"round": round_number, "parents": ids, **changes}
        return self.coordinator.register(self.coordinator.sign(folder, **values))

    def acknowledge(self, release: Path, signer: NodeKeys | None = None) -> bytes:
        """The coordinator's word that it got a release."""
        receipt = receipt_of(release)
        record = receipt.record
        message = Acknowledgement(
            receipt.record_id(), record.run_id, record.round, int(time.time())
        )
        keys = signer or self.coordinator.keys
        return SignedAcknowledgement.sign(message, keys, self.domain).to_bytes()

    def share(self, merged: Path, parents: Sequence[Receipt], **changes: object) -> ShareRequest:
        """What a node is sent of a merged release."""
        record = receipt_of(merged).record
        request = ShareRequest(
            record.run_id,
            record.round,
            files_of(merged),
            {parent.record_id(): parent.to_bytes() for parent in parents},
        )
        return replace(request, **changes)  # type: ignore[arg-type]


def make_federation(folder: Path, count: int = 2, confirmations: int = 0) -> MemoryFederation:
    """A federation of so many nodes."""
    keys = node_keys(COORDINATOR)
    chain = MemoryRegistry(Domain(CHAIN_ID, REGISTRY), keys.address, confirmations)
    run_id = run_id_of(RUN)
    federation = MemoryFederation(folder, chain, Signer(keys, chain, run_id))
    client = federation.coordinator.client
    client.open_run(run_id, keys.address, bytes(32))
    client.enrol(keys.profile)
    federation.coordinator.commit_teacher()
    for _ in range(count):
        federation.add_node()
    return federation


def in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryFederation:
    """Two nodes and a coordinator on a chain in memory, which the nodes' app reads too.

    Nobody's own settings count: the working folder and the home are empty. The disk is not waited
    for, since no plug is pulled; `test_durable` tests the flushing.
    """
    for name in [name for name in os.environ if name.startswith("GENKD_")]:
        monkeypatch.delenv(name)
    for name in ("work", "home"):
        (folder / name).mkdir()
    monkeypatch.chdir(folder / "work")
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "home" / ".config"))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    made = make_federation(folder / "federation")

    def registry_of(membership: Path) -> tuple[Domain, MemoryRegistry]:
        return federation_registry.domain_of_membership(membership), made.chain

    monkeypatch.setattr(federation_registry, "registry_of_membership", registry_of)
    # Time passes by leaps here, which a node that keeps a question would not see.
    monkeypatch.setattr(conversation, "SECONDS_TO_KEEP", 0)
    return made

"""A small federation on disk and on a real Anvil, for tests that start real processes.

    federation = make_federation(folder, nodes=2)
    federation.nodes[0].publish(1)                    # once it keeps the student of round 0
    federation.chain.kill(); federation.chain.up()

Every party has a folder with its keys and its `genkd.toml`; a process of the party is started in
that folder. "Training" adds a little noise to the shared student: no teacher is needed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from contracts import development_chain
from contracts.app_bundle import app_bundle_sha256
from contracts.enrolment import FederationCard
from contracts.registry import RegistryClient, deploy
from coordinator.store import Store, Submission
from genkd import __version__
from genkd.provenance import Policy, keystore, verify
from genkd.provenance.draft import Draft, build_release
from genkd.provenance.keys import KeyFolder
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.passphrase import Passphrase
from genkd.provenance.record import TeacherMessage, commit_to_teacher, run_id_of
from genkd.provenance.release import directory_name, read_receipt, read_release
from genkd.provenance.typed_data import Domain, keccak256, to_hex
from node.federation_registry import CARD_FILE
from node.policy import POLICY_FILE, default_policy_text

RUN = "spring"
RUN_ID = run_id_of(RUN)
PASSPHRASE = "correct horse battery"
CHEAP_SCRYPT_N = 2**12
PATIENCE = 240.0  # seconds; a machine with other work may need that
STUDENT = ("--student", "lenet5-bn-quarter", "--classes", "ant,bee", "--image", "1x16x16")


def wait_for(
    what: Callable[[], Any], seconds: float = PATIENCE, why: Callable[[], str] = str
) -> Any:
    """The first true value of `what`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError(f"did not happen within {seconds:g} s\n{why()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def environment_of(folder: Path) -> dict[str, str]:
    """Nobody's own settings count; imports of torch start no threads."""
    foreign = ("GENKD_", "FLWR_", "XDG_")
    kept = {n: v for n, v in os.environ.items() if not n.startswith(foreign) or n == "GENKD_ANVIL"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"HOME": str(folder), "PATH": path, "OMP_NUM_THREADS": "1"}


class Program:
    """A process of a party, whose words go to a file.

    Args:
        folder: Where it is started.
        name: Of the file.
        command: What is started.
        environment: Beside `environment_of`.
    """

    def __init__(self, folder: Path, name: str, command: list[Any], **environment: str) -> None:
        self.path = folder / f"{name}.txt"
        self.before = len(self.said())
        with self.path.open("ab") as said:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=folder,
                env=environment_of(folder) | environment,
            )

    def said(self) -> str:
        return self.path.read_text() if self.path.exists() else ""

    def says(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait until this process has said it."""
        wait_for(lambda: text in self.said()[self.before :] or self._over(), seconds, self.said)
        assert text in self.said()[self.before :], self.said()

    def _over(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """SIGTERM; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def succeeds(self, seconds: float = PATIENCE) -> None:
        """Wait for its end."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not over within {seconds:g} s\n{self.said()}") from None
        assert status == 0, self.said()


class Chain:
    """Anvil, on one port and one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running = development_chain.up(folder)
        self.port = int(self.running.rpc_url.rpartition(":")[2])

    @property
    def rpc_url(self) -> str:
        return self.running.rpc_url

    def up(self) -> None:
        # What was killed holds its lock for a moment more.
        wait_for(lambda: development_chain.running(self.folder) is None)
        self.running = development_chain.up(self.folder, port=self.port)

    def kill(self) -> None:
        """SIGKILL to Anvil itself, which has no time to save anything.

        Not in the millisecond of each second in which its state is half written: that ends it for
        good, and a person is told so.
        """
        (anvil,) = psutil.Process(self.running.pid).children()
        while True:
            anvil.suspend()
            try:
                json.loads((self.folder / development_chain.STATE_FILE).read_bytes())
                break
            except ValueError:
                anvil.resume()
                time.sleep(0.05)
        anvil.kill()

    def down(self) -> None:
        development_chain.down(self.folder)


@dataclass
class Party:
    """Keys, settings, a registry to write to.

    Attributes:
        folder: Where its processes are started.
        chain: The chain.
        domain: The registry.
        keys: Unlocked.
    """

    folder: Path
    chain: Chain
    domain: Domain
    keys: NodeKeys

    @property
    def client(self) -> RegistryClient:
        return RegistryClient(self.chain.rpc_url, self.domain, signer=self.keys, confirmations=0)

    def write_settings(self, table: str = "") -> None:
        (self.folder / "genkd.toml").write_text(
            f'rpc_url = "{self.chain.rpc_url}"\nchain_id = {self.domain.chain_id}\n'
            f'registry = "{self.domain.contract}"\nconfirmations = 0\n{table}'
            f'keys = "keys"\nkey_password_file = "{self.folder / "passphrase"}"\n'
        )


@dataclass
class Node(Party):
    """A member: a membership, and a folder with its releases."""

    @property
    def membership(self) -> Path:
        return self.folder / "membership"

    @property
    def address(self) -> str:
        return self.keys.address

    @property
    def commitment(self) -> bytes:
        return commit_to_teacher(self.address, keccak256(b"teacher"), keccak256(b"salt"))

    def prepare(self, card: FederationCard) -> None:
        """What `join` leaves, as far as it does not concern a SuperLink; and a teacher."""
        self.membership.mkdir(mode=0o700)
        (self.folder / "runs").mkdir()
        (self.membership / CARD_FILE).write_bytes(card.to_bytes())
        text = default_policy_text(
            node=self.address,
            runs=[RUN],
            app_sha256=card.app_sha256,
            releases=[self.folder / "runs"],
            seconds_between_answers=0,
        )
        (self.membership / POLICY_FILE).write_text(text)
        development_chain.fund(self.chain.rpc_url, self.address)
        client = self.client
        message = TeacherMessage(
            self.commitment, self.address, client.state.head("latest").timestamp + 3600
        )
        client.commit_teacher(message, self.keys.sign(message, self.domain))

    def kept(self, number: int) -> Path | None:
        """The shared student of a round."""
        folder = self.membership / "shared" / to_hex(RUN_ID) / f"round-{number:06d}"
        return next(iter(folder.glob("student-0x*")), None)

    def has_proof(self, number: int) -> bool:
        """Whether its own release of a round has its place in the round's tree."""
        inclusion = read_receipt(self.released(number)).inclusion
        return inclusion is not None and inclusion.proof is not None

    def publish(self, number: int) -> Path:
        """A signed release for a round, made from the student of the round before. No chain."""
        import torch

        from genkd.card import card_to_json
        from genkd.provenance.statement import STUDENT_NAME
        from genkd.weights import STUDENT_FILE, load_tensors, model_bytes, read_card, read_header

        before = wait_for(lambda: self.kept(number - 1), why=lambda: f"{self.folder}: no student")
        header = read_header(before / STUDENT_NAME, STUDENT_FILE)
        card = read_card(header)
        assert card is not None
        noise = torch.Generator().manual_seed(int(self.address, 16) % 2**31 + number)
        state = load_tensors(before / STUDENT_NAME, header)
        for name, tensor in state.items():
            if tensor.is_floating_point() and "running" not in name:
                state[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=noise)
        draft = Draft(
            student=model_bytes(state, {"v": 1, "card": card_to_json(card)}),
            domain=self.domain,
            run_id=RUN_ID,
            round=number,
            parents=(read_receipt(before).record_id(),),
            teacher_commitment=self.commitment,
            recipe={"name": "quick"},
            evaluation={"top1": "0.81"},
            version=__version__,
            deadline=int(time.time()) + 24 * 3600,
        )
        return build_release(self.folder / "runs" / f"round-{number}" / "release", draft, self.keys)

    def released(self, number: int) -> Path:
        (found,) = (self.folder / "runs" / f"round-{number}" / "release").glob("student-0x*")
        return found


@dataclass
class RealFederation:
    """A chain, a coordinator with an open run, and enrolled nodes.

    Attributes:
        folder: Everything lies here.
        chain: Anvil.
        coordinator: Owns the registry.
        nodes: The members.
    """

    folder: Path
    chain: Chain
    coordinator: Party
    nodes: list[Node] = field(default_factory=list)

    @property
    def federation(self) -> Path:
        """The coordinator's federation folder."""
        return self.coordinator.folder / "federation"

    def submissions(self, number: int) -> list[Submission]:
        with Store.open(self.federation) as store:
            return list(store.submissions(RUN_ID, number))

    def accepted(self, number: int, node: Node) -> bool:
        """Whether the coordinator has stored a node's release."""
        if not (self.federation / "store.sqlite").exists():
            return False
        return any(s.node == node.address and s.accepted for s in self.submissions(number))

    def merged(self, number: int) -> Path:
        """The one signed merged student of a round."""
        top = self.federation / "merged" / to_hex(RUN_ID) / f"round-{number:06d}"
        (found,) = top.glob("student-0x*")
        return found

    def assert_round(self, number: int) -> None:
        """The round ended right: on the coordinator's disk, on the chain, on each node's disk."""
        sent = {node.address: node.released(number).name for node in self.nodes}
        submissions = self.submissions(number)
        assert [one.accepted for one in submissions] == [True] * len(sent), submissions
        assert {one.node: directory_name(one.record_id) for one in submissions} == sent
        ids = [one.record_id for one in submissions]
        state = self.coordinator.client.state
        on_chain = state.round(RUN_ID, number)
        assert (on_chain.root, on_chain.count) == (MerkleTree(ids).root, len(sent))
        merged = self.merged(number)
        assert state.is_registered(read_receipt(merged).record_id())
        received = self.federation / "releases" / to_hex(RUN_ID) / f"round-{number:06d}"
        verification = verify(
            merged, policy=Policy(self.coordinator.domain), chain=state, parents_in=[received]
        )
        assert verification.summary == "valid", verification
        for node in self.nodes:
            kept = node.kept(number)
            assert kept is not None, node.folder
            assert kept.name == merged.name
            assert read_release(kept).student == read_release(merged).student
            # The node writes it once the student is kept.
            wait_for(lambda node=node: node.has_proof(number))  # type: ignore[misc]


def make_federation(folder: Path, nodes: int = 2) -> RealFederation:
    """Deploy a registry, open the run, enrol everybody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keystore, "SCRYPT_N", CHEAP_SCRYPT_N)
        keys = {name: _make_keys(folder / name) for name in _names(nodes)}
    chain = Chain(folder / "chain")
    owner = keys["coordinator"]
    development_chain.fund(chain.rpc_url, owner.address)
    chain_id = chain.running.chain_id
    domain, _ = deploy(chain.rpc_url, chain_id, owner, owner=owner.address)
    coordinator = Party(folder / "coordinator", chain, domain, owner)
    coordinator.write_settings('[coordinator]\nhost = "127.0.0.1"\n')
    client = coordinator.client
    client.open_run(RUN_ID, owner.address, bytes(32))
    card = FederationCard(
        owner.address, chain_id, domain.contract, chain.rpc_url, 0, app_bundle_sha256(), (RUN,)
    )
    made = RealFederation(folder, chain, coordinator)
    made.federation.mkdir(mode=0o700)
    for name in _names(nodes)[1:]:
        node = Node(folder / name, chain, domain, keys[name])
        profile = node.keys.profile
        client.add_node(node.address, profile.message.next_key_hash, profile.profile_hash())
        node.prepare(card)
        node.write_settings()
        made.nodes.append(node)
    return made


def _names(nodes: int) -> list[str]:
    return ["coordinator", *(f"node-{number}" for number in range(1, nodes + 1))]


def _make_keys(folder: Path) -> NodeKeys:
    folder.mkdir(parents=True)
    (folder / "passphrase").touch(mode=0o600)
    (folder / "passphrase").write_text(PASSPHRASE)
    made = KeyFolder(folder / "keys")
    made.create(Passphrase(PASSPHRASE))
    return made.unlock(Passphrase(PASSPHRASE))


def children_of(node: Node) -> dict[str, int]:
    """The running processes of a node's membership, by their module."""
    found = {}
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] == psutil.STATUS_ZOMBIE or "-m" not in words:
            continue
        module = words[words.index("-m") + 1]
        if any(word.startswith(str(node.membership)) for word in words):
            found[module] = process.info["pid"]
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)

"""SIGKILL in the middle of a round, each time another process; on the real engine and a real chain.

`genkd-coordinator serve` and `run`, `genkd-node join` with its SuperNode and executor, Anvil: all
as a person starts them, with TLS, on one federation whose rounds follow each other. Each test is a
round in which something is killed once one of two releases is in; whatever was killed is started
again by the same command, and the round must end as if nothing had been.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from coordinator.certificates import Authority
from coordinator.superlink import list_supernodes, register_supernode
from genkd.provenance import secp256k1
from node.membership import Joined, Membership
from tests.federation.real_federation import (
    PATIENCE,
    RUN,
    STUDENT,
    Node,
    Program,
    RealFederation,
    children_of,
    free_port,
    kill,
    make_federation,
    wait_for,
)

pytest.importorskip("flwr")
EXECUTOR = "node.executor"


class Running:
    """The federation's processes, each of which can be killed and started again.

    Attributes:
        federation: Their folders and their chain.
        programs: By name: `serve`, `run`, and a node's folder's name.
        number: The last round that was begun.
    """

    def __init__(self, federation: RealFederation) -> None:
        self.federation = federation
        self.programs: dict[str, Program] = {}
        self.number = 0
        self.port = free_port()
        self.authority = Authority.create(federation.federation)
        self.authority.issue(["localhost"])

    # ------------------------------------------------------------------ starting

    def serve(self) -> None:
        folder = self.federation.coordinator.folder
        command = ["genkd-coordinator", "serve", "--port", self.port]
        self.programs["serve"] = Program(folder, "serve", command)
        self.programs["serve"].says("serving")

    def register(self, node: Node) -> None:
        """What `admit` does after a join, as far as it concerns the SuperLink."""
        from contracts.enrolment import supernode_key_pem

        membership = Membership.open(node.membership)
        membership.make_secrets()
        membership.remember(
            Joined(self.address, self.authority.fingerprint, node.address, (RUN,), "admitted")
        )
        membership.ca.write_bytes((self.federation.federation / "ca.pem").read_bytes())
        pem = supernode_key_pem(membership.supernode_public_key()).encode()
        register_supernode(self.federation.federation, pem, node.address)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def join(self, node: Node) -> None:
        command = [
            *("genkd-node", "join", self.address),
            *("--ca-fingerprint", self.authority.fingerprint, "--run", RUN),
        ]
        self.programs[node.folder.name] = Program(node.folder, "join", command)

    def run(self) -> None:
        command = [
            *("genkd-coordinator", "run", "--run", RUN, "--rounds", self.number, "--nodes", 2),
            *("--quorum", 2, "--wait", "20m", "--merge", "fedavg", *STUDENT),
        ]
        self.programs["run"] = Program(self.federation.coordinator.folder, "run", command)

    # ------------------------------------------------------------------ a round

    def half_a_round(self) -> None:
        """Begin the next round, up to where the first node's release is in."""
        self.number += 1
        self.run()
        first = self.federation.nodes[0]
        first.publish(self.number)
        wait_for(lambda: self.federation.accepted(self.number, first), why=self.said)

    def other_half(self) -> None:
        """The second node's release comes, and the round ends right."""
        self.federation.nodes[1].publish(self.number)
        self.programs["run"].succeeds(2 * PATIENCE)
        self.federation.assert_round(self.number)

    # ------------------------------------------------------------------ looking and ending

    def said(self) -> str:
        texts = (f"--- {name}\n{one.said()[-4000:]}" for name, one in self.programs.items())
        return "\n".join(texts)

    def end(self) -> None:
        for name in sorted(self.programs, key="serve".__eq__):
            self.programs[name].end()


@pytest.fixture(scope="module", autouse=True)
def quick_signatures() -> Iterator[None]:
    """A signature is checked once, not each time its release is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secp256k1, "_recover", functools.cache(secp256k1._recover))
        yield


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    federation = make_federation(tmp_path_factory.mktemp("faults"))
    made = Running(federation)
    try:
        made.serve()
        for node in federation.nodes:
            made.register(node)
            made.join(node)
        yield made
    finally:
        made.end()
        federation.chain.down()
        assert not [children for node in federation.nodes if (children := children_of(node))]


def test_a_killed_coordinator_goes_on_with_what_it_had(running: Running) -> None:
    running.half_a_round()
    running.programs["run"].kill()
    running.run()
    running.programs["run"].says("1 of 2 releases here")
    running.other_half()


def test_a_killed_superlink_comes_back_and_nobody_else_is_started_again(running: Running) -> None:
    running.half_a_round()
    running.programs["serve"].kill()
    running.serve()
    running.other_half()


def test_a_killed_anvil_comes_back_with_what_was_recorded(running: Running) -> None:
    running.half_a_round()
    running.federation.chain.kill()
    running.federation.nodes[1].publish(running.number)  # needs no chain
    running.programs["run"].says("cannot be reached")
    running.federation.chain.up()
    running.programs["run"].succeeds(2 * PATIENCE)
    running.federation.assert_round(running.number)


def test_killed_executors_are_started_again_and_answer(running: Running) -> None:
    running.half_a_round()
    nodes = running.federation.nodes
    killed = {children_of(node)[EXECUTOR] for node in nodes}
    for pid in killed:
        kill(pid)

    def are_back() -> bool:
        executors = {children_of(node).get(EXECUTOR) for node in nodes}
        online = sum(node.online for node in list_supernodes(running.federation.federation))
        return not executors & {None, *killed} and online == len(nodes)

    # A student is shared with the nodes that are there when the round ends.
    wait_for(are_back, why=running.said)
    running.other_half()


def test_everything_killed_at_once_goes_on_where_it_was(running: Running) -> None:
    """A power cut. The nodes' keepers too: their SuperNodes and executors end with them."""
    running.half_a_round()
    running.federation.chain.kill()
    for program in running.programs.values():
        program.kill()
    wait_for(lambda: not any(map(children_of, running.federation.nodes)))
    running.federation.chain.up()
    running.serve()
    for node in running.federation.nodes:
        running.join(node)
    running.run()
    running.other_half()


def test_every_round_is_there_once_all_is_over(running: Running) -> None:
    for number in range(1, running.number + 1):
        running.federation.assert_round(number)

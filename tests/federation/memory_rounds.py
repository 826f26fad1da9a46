"""Rounds of a federation in memory: nodes that train as soon as they have the shared student.

    rounds = Rounds(federation, tmp_path / "coordinator")
    with federation.grid() as grid:
        done = rounds.run(grid, rounds=2)

The coordinator's code is the real one; training is adding a node's own number to every weight.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coordinator.federation_run import FederationRun
from coordinator.merged_release import ReleasePress
from coordinator.merging import MergeMethod
from coordinator.node_messages import NodeMessages
from coordinator.run_archive import DoneRound, RunArchive
from coordinator.run_plan import RunPlan
from coordinator.start_student import StartStudent
from coordinator.store import Store, Submission
from genkd.card import card_from_json
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.typed_data import keccak256, to_hex
from genkd.safetensors_header import read_header
from genkd.weights import STUDENT_FILE
from node.inbox import shared_students
from tests.federation.local_grid import LocalGrid
from tests.federation.memory_federation import (
    CARD,
    MemberNode,
    MemoryFederation,
    model_file,
    receipt_of,
)


class ToyStart(StartStudent):
    """A start student of one tensor, which no network needs."""

    def model_file(self, seed: int) -> bytes:
        return model_file(seed)


TOY_START = ToyStart(card_from_json(dict(CARD)))


class Salts:
    """What the press asks of a key folder."""

    def teacher_salt(self, address: str, teacher_sha256: bytes) -> bytes:
        return keccak256(address.encode() + teacher_sha256)


def weights_of(student: Path | bytes) -> np.ndarray:
    data = student if isinstance(student, bytes) else student.read_bytes()
    header = read_header(data, STUDENT_FILE)
    return np.frombuffer(data[header.data_offset :], "<f4")


@dataclass
class Rounds:
    """A coordinator that can be started over and over on one folder.

    Attributes:
        federation: Its nodes and its chain.
        folder: Its federation folder.
        absent: Nodes that do not train.
        each_tick: Is called again and again while the coordinator waits.
        now: What the coordinator's clock says: it stands while a node has something to do.
        trained: How many shared students each node had when it trained last.
    """

    federation: MemoryFederation
    folder: Path
    absent: set[int] = field(default_factory=set)
    each_tick: Callable[[], None] = field(default=lambda: None)
    now: float = 0.0
    trained: dict[int, int] = field(default_factory=dict)

    def plan(self, **changes: object) -> RunPlan:
        values: dict[str, object] = {
            "run_id": self.federation.run_id,
            "rounds": 1,
            "nodes": len(self.federation.nodes),
            "quorum": 2,
            "method": MergeMethod.FEDAVG,
            "wait_seconds": 60.0,
        }
        return RunPlan(**(values | changes))  # type: ignore[arg-type]

    def press(self) -> ReleasePress:
        coordinator = self.federation.coordinator
        return ReleasePress(coordinator.client, coordinator.keys, Salts())  # type: ignore[arg-type]

    def run(
        self, grid: LocalGrid, *, start: StartStudent | None = TOY_START, **changes: object
    ) -> list[DoneRound]:
        """One call of the coordinator, from opening its store to closing it."""
        with Store.open(self.folder) as store:
            archive = RunArchive(self.folder, store, self.press(), self.federation.run_id)
            plan = self.plan(**changes)
            return FederationRun(
                NodeMessages(grid, self._clock),
                archive,
                plan,
                start,
                clock=self._clock,
                sleep=lambda seconds: self._pass(grid, seconds),
            ).run()

    def _clock(self) -> float:
        return self.now

    def _pass(self, grid: LocalGrid, seconds: float) -> None:
        """Let the nodes do what they have to do, and then so many seconds pass."""
        wait([future for _, future in list(grid._running.values())], timeout=60)
        for node in self.federation.nodes:
            rounds_here = len(list((node.membership / "shared").glob("0x*/round-*")))
            if node.node_id not in self.absent and rounds_here > self.trained.get(node.node_id, 0):
                train(node)
                self.trained[node.node_id] = rounds_here
        self.each_tick()
        self.now += seconds

    # ------------------------------------------------------------------ what came of it

    def submissions(self, number: int = 1) -> list[Submission]:
        with Store.open(self.folder) as store:
            return list(store.submissions(self.federation.run_id, number))

    def merged(self, number: int = 1) -> list[Path]:
        """The signed merged students of a round; the number in its folder."""
        top = self.folder / "merged" / to_hex(self.federation.run_id) / f"round-{number:06d}"
        return sorted(top.glob("student-0x*"))

    def assert_recorded_once(self, number: int = 1, members: int = 3) -> None:
        """The round has one root, of each accepted release once, and one merged student."""
        accepted = [one for one in self.submissions(number) if one.accepted]
        ids = [one.record_id for one in accepted]
        assert len(ids) == len(set(ids)) == members
        on_chain = self.federation.chain.round(self.federation.run_id, number)
        assert (on_chain.root, on_chain.count) == (MerkleTree(ids).root, members)
        (merged,) = self.merged(number)
        receipt = receipt_of(merged)
        assert self.federation.chain.is_registered(receipt.record_id())
        assert statement_parents(merged) == sorted(ids)


def statement_parents(release: Path) -> list[bytes]:
    value = json.loads((release / "provenance.json").read_bytes())
    _, *parents = value["predicate"]["buildDefinition"]["resolvedDependencies"]
    return [bytes.fromhex(one["digest"]["genkdRecordId"]) for one in parents]


def train(node: MemberNode) -> Path | None:
    """Publish for the round after the newest shared student, unless that is done."""
    shared = shared_students(node.membership)
    if not shared:
        return None
    newest = max(shared, key=lambda student: student.round)
    number = newest.round + 1
    records = [receipt_of(path).record for path in node.runs.glob("*/release/student-0x*")]
    if any((record.run_id, record.round) == (newest.run_id, number) for record in records):
        return None
    values = weights_of(newest.path / "student.safetensors") + np.float32(node.node_id % 100 + 1)
    return node.publish(
        number,
        student=model_file(values=values),
        parents=(receipt_of(newest.path).record_id(),),
    )


class Killed(BaseException):
    """The process ended here."""

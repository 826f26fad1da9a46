"""The intake: every attack refused by name, every honest release counted once, whatever happens."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks import submissions
from benchmarks.submissions import (
    CARD,
    DOMAIN,
    ROUND,
    RUN,
    run_submissions,
    signed_release,
    student_file,
    teacher_of,
)
from coordinator.intake import Intake
from coordinator.intake_rules import IntakeRules, SharedStudent
from coordinator.round_folder import folder_of_round
from coordinator.store import RoundState, Store, Submission
from coordinator.weight_size import weight_size
from genkd.durable import TEMPORARY_PREFIX, unwritable
from genkd.errors import CannotCheck, InputFileRefused, ResourceExhausted
from genkd.provenance import Policy, verify
from genkd.provenance.chain import Block
from genkd.provenance.memory_chain import MemoryChain
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import make_profile
from genkd.provenance.receipt import Inclusion, Receipt
from genkd.provenance.record import Revocation, TeacherMessage
from genkd.provenance.release import RECEIPT_NAME, directory_name
from genkd.provenance.statement import STUDENT_NAME
from genkd.provenance.typed_data import Domain, keccak256
from genkd.weights import STUDENT_FILE, model_bytes, read_header

ROOT = Path(__file__).parents[2]
make_keys = functools.cache(submissions.make_keys)
SENDER = 2**63 + 7
Files = dict[str, bytes]


@dataclass
class World:
    """A federation folder, a registry in memory, two enrolled nodes, and one that is not."""

    folder: Path
    chain: MemoryChain
    store: Store
    node: NodeKeys
    other: NodeKeys
    stranger: NodeKeys
    coordinator: NodeKeys
    start: Path
    seed: int = field(default=100)

    @property
    def rules(self) -> IntakeRules:
        return IntakeRules(DOMAIN, RUN, ROUND, SharedStudent.read(self.start))

    def intake(self, **changes: object) -> Intake:
        rules = replace(self.rules, **changes)  # type: ignore[arg-type]
        return Intake(self.store, self.folder, rules, self.chain)

    def submit(self, files: Mapping[str, bytes], **rules: object) -> Submission:
        return self.intake(**rules).submit(files, SENDER)

    def student(self, **changes: object) -> bytes:
        self.seed += 1
        return student_file(self.seed, **changes)  # type: ignore[arg-type]

    def release(
        self, student: bytes | None = None, *, keys: NodeKeys | None = None, **changes: object
    ) -> Files:
        deadline = {"deadline": self.chain.now + 3600}
        data = self.student() if student is None else student
        return signed_release(keys or self.node, data, **deadline | changes)

    def altered(self, change: Callable[[dict[str, np.ndarray]], object]) -> Files:
        return self.release(self.student(change=change))

    def carded(self, **changes: object) -> Files:
        return self.release(self.student(card=dict(CARD) | changes))

    def enrol(self, keys: NodeKeys) -> None:
        self.chain.add_node(keys.profile)
        message = TeacherMessage(teacher_of(keys), keys.address, self.chain.now + 3600)
        self.chain.commit_teacher(message, keys.sign(message, DOMAIN))

    def on_disk(self) -> list[str]:
        """Everything under releases/ that is no lock, nor a folder of folders."""
        top = self.folder / "releases"
        return sorted(
            str(path.relative_to(folder_of_round(top, RUN, ROUND)))
            if path.is_relative_to(folder_of_round(top, RUN, ROUND))
            else f"strange: {path}"
            for path in top.rglob("*")
            if path.is_file() and path.name != ".lock"
        )


FOUR = ("model.sig", "provenance.json", "receipt.json", "student.safetensors")


def kept(*all_files: Files) -> list[str]:
    """What the disk must hold after these releases were accepted."""
    names = [directory_name(receipt(files).record_id()) for files in all_files]
    return sorted(f"{name}/{file}" for name in names for file in FOUR)


def receipt(files: Mapping[str, bytes]) -> Receipt:
    return Receipt.from_bytes(files[RECEIPT_NAME])


def build_world(folder: Path) -> World:
    node, other, stranger, coordinator = (make_keys(s) for s in (0xA11CE, 0xB0B, 0x57, 0xC0FFEE))
    chain = MemoryChain(DOMAIN, owner=coordinator.address)
    chain.open_run(RUN, coordinator.address)
    folder.mkdir(parents=True, exist_ok=True)
    start = folder / "start.safetensors"
    start.write_bytes(student_file(0))
    world = World(folder, chain, Store.open(folder), node, other, stranger, coordinator, start)
    for keys in (node, other):
        world.enrol(keys)
    return world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # No plug is pulled here, and thousands of files are written; `test_durable` tests the flushing.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    made = build_world(tmp_path / "federation")
    yield made
    made.store.close()


@pytest.fixture
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that signs what this program would refuse to sign."""
    monkeypatch.setattr("genkd.provenance.draft.read_origin", lambda student: None)


# ------------------------------------------------------------------ what is honest


def test_an_honest_release_counts_and_lies_where_it_belongs(world: World) -> None:
    files = world.release()
    result = world.submit(files)
    assert (result.accepted, result.duplicate, result.reason) == (True, False, "")
    assert (result.node, result.sender) == (world.node.address, SENDER)
    assert (result.record_id, result.architecture) == (receipt(files).record_id(), "resnet8-half")
    assert result.size == sum(map(len, files.values()))
    assert result.path is not None
    assert {path.name: path.read_bytes() for path in result.path.iterdir()} == files
    assert verify(result.path, policy=Policy(DOMAIN)).signed
    assert world.on_disk() == kept(files)
    assert [one.node for one in world.store.nodes()] == [world.node.address]


def test_two_nodes_count_in_one_round(world: World) -> None:
    all_files = [world.release(), world.release(keys=world.other)]
    assert all(world.submit(files).accepted for files in all_files)
    assert world.on_disk() == kept(*all_files)


def test_a_student_of_another_architecture_counts_when_students_are_distilled_together(
    world: World,
) -> None:
    from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
    from genkd.models import build_model

    names = tuple(str(name) for name in CARD["class_names"][:3])  # type: ignore[index]
    card = ModelCard(ModelSpec("lenet5", 3, 1), InputCard(32, 32, 1, (0.1,), (0.3,)), names)
    state = build_model(card.spec).state_dict()
    student = model_bytes(state, {"v": 1, "card": card_to_json(card)})
    result = world.submit(world.release(student))
    assert (result.accepted, result.reason, result.architecture) == (True, "", "lenet5")


def test_a_student_made_from_one_merged_earlier_in_the_run_counts(world: World) -> None:
    parent = keccak256(b"merged")
    folder_of_round(world.folder / "merged", RUN, 0).joinpath(directory_name(parent)).mkdir(
        parents=True
    )
    assert world.submit(world.release(parents=(parent,))).accepted


# ------------------------------------------------------------------ attacks

Attack = Callable[[World], Files]


def forged(world: World) -> Files:
    files = world.release()
    signature = world.other.sign(receipt(files).record, DOMAIN)
    return files | {RECEIPT_NAME: replace(receipt(files), signature=signature).to_bytes()}


def claimed_by_another(world: World) -> Files:
    """The other node puts its own name to the node's student."""
    stolen, own = world.release(), world.release(keys=world.other)
    return own | {STUDENT_NAME: stolen[STUDENT_NAME]}


def flipped(name: str) -> Attack:
    def attack(world: World) -> Files:
        files = world.release()
        data = bytearray(files[name])
        data[len(data) // 2] ^= 1
        return files | {name: bytes(data)}

    return attack


def flipped_last(world: World) -> Files:
    files = world.release()
    data = bytearray(files[STUDENT_NAME])
    data[-1] ^= 1
    return files | {STUDENT_NAME: bytes(data)}


def truncated(name: str) -> Attack:
    def attack(world: World) -> Files:
        files = world.release()
        return files | {name: files[name][: len(files[name]) // 2]}

    return attack


def filled_with(name: str, data: bytes) -> Attack:
    return lambda world: world.release() | {name: data}


def lacking(name: str) -> Attack:
    return lambda world: {n: data for n, data in world.release().items() if n != name}


def with_extra(name: str) -> Attack:
    return lambda world: world.release() | {name: b"x"}


def renamed(name: str) -> Attack:
    def attack(world: World) -> Files:
        files = world.release()
        return {name if n == STUDENT_NAME else n: data for n, data in files.items()}

    return attack


def of_another_chain(world: World) -> Files:
    return world.release(domain=Domain(1, DOMAIN.contract))


def of_a_removed_node(world: World) -> Files:
    world.chain.remove_node(world.node.address, world.chain.now)
    return world.release()


def with_another_profile(world: World) -> Files:
    """The node's Ethereum key with a P-256 key that was never enrolled, as a thief would."""
    signing_key = ec.derive_private_key(99, ec.SECP256R1())
    profile = make_profile(0xA11CE, signing_key, bytes(32), bytes(32))
    return world.release(keys=NodeKeys(0xA11CE, signing_key, profile))


def teacher_not_committed(world: World) -> Files:
    return world.release(teacher_commitment=keccak256(b"another teacher"))


def teacher_of_another(world: World) -> Files:
    return world.release(teacher_commitment=teacher_of(world.other))


def revoked_by_its_node(world: World) -> Files:
    files = world.release()
    message = Revocation(receipt(files).record_id(), 2, world.node.address)
    world.chain.revoke(message, world.node.sign(message, DOMAIN))
    return files


def revoked_by_the_owner(world: World) -> Files:
    files = world.release()
    world.chain.revoke_as_owner(receipt(files).record_id(), 1)
    return files


def too_late(world: World) -> Files:
    files = world.release()
    world.chain.mine(seconds=7200)
    return files


def almost_too_late(world: World) -> Files:
    return world.release(deadline=world.chain.now + 30)


def set_to(name: str, value: float) -> Attack:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[1] = value

    return lambda world: world.altered(change)


def scaled(factor: float, *names: str) -> Attack:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in names or tuple(tensors):
            tensors[name] = ((tensors[name] + (name != "fc.weight")) * factor).astype("<f4")

    return lambda world: world.altered(change)


def carded(**changes: object) -> Attack:
    return lambda world: world.carded(**changes)


def with_input(**changes: object) -> Attack:
    image = dict(CARD["input"]) | changes  # type: ignore[call-overload]
    return lambda world: world.carded(input=image)


def without_card(world: World) -> Files:
    files = world.release()
    student = files[STUDENT_NAME].replace(b'\\"card\\"', b'\\"cart\\"')
    return files | {STUDENT_NAME: student}


def the_shared_student(world: World) -> Files:
    return world.release(world.start.read_bytes())


def the_shared_student_renamed(world: World) -> Files:
    """Other bytes, another description, the same tensors."""
    card = dict(CARD) | {"description": "mine, honestly"}
    files = world.release(student_file(0, card=card))
    assert files[STUDENT_NAME] != world.start.read_bytes()
    return files


def with_a_strange_parent(world: World) -> Files:
    return world.release(parents=(keccak256(b"never merged"),))


ATTACKS: dict[str, tuple[Attack, str]] = {
    "forged signature": (forged, "check 5 failed"),
    "somebody else's student": (claimed_by_another, "check 2 failed: the student is not"),
    "bit flipped in the student": (flipped(STUDENT_NAME), "check [12] failed"),
    "bit flipped in its last weight": (flipped_last, "check 2 failed"),
    "bit flipped in the statement": (flipped("provenance.json"), "check [34] failed"),
    "bit flipped in the bundle": (flipped("model.sig"), "check 3 failed"),
    "bit flipped in the receipt": (flipped(RECEIPT_NAME), r"receipt\.json is not usable|check"),
    "truncated student": (truncated(STUDENT_NAME), "check 1 failed.*truncated"),
    "truncated statement": (truncated("provenance.json"), "check [34] failed"),
    "truncated bundle": (truncated("model.sig"), "check 3 failed"),
    "truncated receipt": (truncated(RECEIPT_NAME), r"receipt\.json is not usable"),
    "empty student": (filled_with(STUDENT_NAME, b""), "check 1 failed.*empty"),
    "a pickle for a student": (filled_with(STUDENT_NAME, b"\x80\x04." * 99), "check 1 failed"),
    "deep JSON for a receipt": (filled_with(RECEIPT_NAME, b"[" * 60_000), "nested too deeply"),
    "of another run": (lambda w: w.release(run_id=keccak256(b"other")), "it is of run 0x"),
    "of another round": (lambda w: w.release(round=ROUND + 1), "it is of run 0x.* round 2"),
    "of another chain": (of_another_chain, "check 5 failed: it is signed for chain 1"),
    "node never enrolled": (lambda w: w.release(keys=w.stranger), "is not enrolled"),
    "node removed": (of_a_removed_node, "is not enrolled with this profile"),
    "another profile": (with_another_profile, "is not enrolled with this profile"),
    "teacher not committed": (teacher_not_committed, "its node has not committed to the teacher"),
    "another node's teacher": (teacher_of_another, "its node has not committed to the teacher"),
    "revoked by its node": (revoked_by_its_node, "its node revoked it, reason 2"),
    "revoked by the owner": (revoked_by_the_owner, "the registry's owner revoked it, reason 1"),
    "deadline passed": (too_late, "its deadline has passed"),
    "deadline too near": (almost_too_late, "its deadline has passed"),
    "NaN": (set_to("fc.weight", np.nan), "check 1 failed.*NaN or infinite"),
    "infinite": (set_to("fc.weight", np.inf), "check 1 failed.*NaN or infinite"),
    "infinite running mean": (set_to("bn.running_mean", -np.inf), "check 1 failed.*NaN"),
    "negative running variance": (set_to("bn.running_var", -1.0), "running variance .* negative"),
    "weights x1000": (scaled(1000), "its weights have a root mean square of .* out of proportion"),
    "one weight of 1e38": (set_to("fc.weight", 1e38), "its weights have a root mean square"),
    "weights / 1000": (scaled(1e-3), "its weights have a root mean square of .* out of proportion"),
    "all weights zero": (scaled(0.0, "fc.weight"), "its weights have a root mean square of 0"),
    "running statistics x1e6": (
        scaled(1e6, "bn.running_mean", "bn.running_var"),
        "its running statistics have a root mean square",
    ),
    "tensors of another architecture": (carded(architecture="resnet14"), "resnet14"),
    "an architecture that does not exist": (carded(architecture="resnet7"), "resnet7"),
    "an architecture from the network": (carded(architecture="timm:no_such"), "timm|no_such"),
    "other classes": (carded(class_names=["shirt", "shoe", "bag", "dog"]), "its class 'dog'"),
    "a hostile class name": (carded(class_names=["shirt", "shoe", "bag", "'; --"]), "its class"),
    "classes without names": (carded(class_names=None), "does not name each of its classes"),
    "a class named twice": (carded(class_names=["shirt"] * 4), "each by another name"),
    "another image size": (with_input(height=28), "it takes images of 1x28x32, not 1x32x32"),
    "colour images": (
        with_input(channels=3, mean=["0.5"] * 3, std=["0.5"] * 3),
        "it takes images of 3x32x32|check",
    ),
    "no card": (without_card, "check 1 failed"),
    "the last shared student": (the_shared_student, "it is the shared student itself"),
    "the last shared student, renamed": (the_shared_student_renamed, "the shared student itself"),
    "a parent nobody merged": (with_a_strange_parent, "is no student merged in this run"),
    "no receipt": (lacking(RECEIPT_NAME), r"it lacks receipt\.json"),
    "no student": (lacking(STUDENT_NAME), r"it lacks student\.safetensors"),
    "no files": (lambda w: {}, "it lacks model.sig"),
    "an extra file": (with_extra("teacher.pt"), r"it holds the foreign file 'teacher\.pt'"),
    "a path upward": (with_extra("../../evil"), r"the foreign file '\.\./\.\./evil'"),
    "an absolute path": (with_extra("/etc/passwd"), "the foreign file '/etc/passwd'"),
    "a zero byte in a name": (with_extra("a\x00b"), "the foreign file"),
    "no proper text for a name": (with_extra("\udcff"), "the foreign file"),
    "a line break in a name": (with_extra("a\nb"), "the foreign file"),
    "the student under a path": (renamed("./student.safetensors"), "the foreign file"),
    "a huge receipt": (filled_with(RECEIPT_NAME, b"x" * 70_000), "receipt.json is larger than"),
    "a huge bundle": (filled_with("model.sig", b"x" * 2**21), "model.sig is larger than"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.usefixtures("nobody_looks")
def test_attack_is_refused_with_its_reason_and_leaves_nothing(world: World, attack: str) -> None:
    make, reason = ATTACKS[attack]
    files = make(world)
    result = world.submit(files)
    assert not result.accepted
    assert re.search(reason, result.reason), result.reason
    assert len(result.reason) <= 300
    assert result.reason.isprintable()
    assert str(world.folder) not in result.reason
    assert TEMPORARY_PREFIX not in result.reason
    assert result.path is None
    assert world.on_disk() == []
    assert list(world.store.submissions(RUN, ROUND)) == [result]
    assert list(world.store.accepted(RUN, ROUND)) == []


def test_statistics_of_another_scale_are_honest(world: World) -> None:
    """Behind BatchNorm a scale means nothing: a student of the demo had 1,180 times."""
    files = scaled(2000.0, "bn.running_mean", "bn.running_var")(world)
    result = world.submit(files)
    assert (result.accepted, result.reason) == (True, "")


@pytest.mark.usefixtures("nobody_looks")
def test_refused_attacks_do_not_stand_in_the_way_of_the_honest(world: World) -> None:
    for attack in ("forged signature", "bit flipped in the bundle", "NaN", "weights x1000"):
        assert not world.submit(ATTACKS[attack][0](world)).accepted
    assert world.submit(world.release()).accepted


def test_only_who_signed_is_named(world: World) -> None:
    """A forger must not make another node look like one who was refused, or was here."""
    assert world.submit(forged(world)).node == ""
    assert world.submit(flipped_last(world)).node == ""
    assert list(world.store.nodes()) == []
    assert world.submit(world.altered(lambda t: t.update(x=t["fc.weight"] * 9))).node != ""


AVERAGING: dict[str, tuple[Attack, str]] = {
    "another architecture": (carded(architecture="resnet14"), "architecture, classes or channels"),
    "classes in another order": (
        carded(class_names=["shoe", "shirt", "bag", "coat"]),
        "its class names are not the shared student's",
    ),
    "another normalisation": (with_input(mean=["0.4"]), "its images are not"),
    "a tensor more": (
        lambda w: w.altered(lambda t: t.update(more=t["fc.weight"][:1].copy())),
        "its tensors are not those of the shared student",
    ),
    "a tensor of another shape": (
        lambda w: w.altered(lambda t: t.update({"fc.weight": t["fc.weight"].T.copy()})),
        "its tensors are not those of the shared student",
    ),
    "a tensor of another type": (
        lambda w: w.altered(lambda t: t.update({"fc.weight": t["fc.weight"].astype("<f8")})),
        "its tensors are not those of the shared student",
    ),
}


@pytest.mark.parametrize("difference", AVERAGING)
def test_students_that_are_averaged_must_be_alike(world: World, difference: str) -> None:
    make, reason = AVERAGING[difference]
    result = world.submit(make(world), averaging=True)
    assert not result.accepted
    assert reason in result.reason
    assert world.submit(world.release(), averaging=True).accepted


def test_a_node_that_does_not_take_part_is_refused(world: World) -> None:
    takes_part = frozenset({world.other.address})
    result = world.submit(world.release(), nodes=takes_part)
    assert "is not among the accepted ones" in result.reason
    assert world.submit(world.release(keys=world.other), nodes=takes_part).accepted


def test_a_release_larger_than_the_rules_allow_is_refused_before_it_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.intake.atomic_write", None)
    files = world.release()
    limit = sum(map(len, files.values())) - 1
    assert world.submit(files, max_release_bytes=limit).reason == f"it is larger than {limit} bytes"


# ------------------------------------------------------------------ again, and others of the same


def test_the_same_bytes_again_are_a_duplicate_that_costs_no_check(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = world.release()
    first = world.submit(files)
    monkeypatch.setattr("coordinator.intake.verify", None)
    assert [world.submit(files) for _ in range(3)] == [replace(first, duplicate=True)] * 3
    assert len(list(world.store.submissions(RUN, ROUND))) == 1


def test_the_same_record_with_its_proof_is_a_duplicate(world: World) -> None:
    files = world.release()
    first = world.submit(files)
    complete = replace(receipt(files), inclusion=Inclusion(bytes(32), 7, ()))
    again = world.submit(files | {RECEIPT_NAME: complete.to_bytes()})
    assert again == replace(first, duplicate=True)
    assert world.on_disk() == kept(files)
    assert (first.path / RECEIPT_NAME).read_bytes() == files[RECEIPT_NAME]  # type: ignore[operator]


def test_the_same_record_signed_anew_is_a_duplicate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ECDSA has many signatures of one message: the bundle's bytes identify nothing."""
    first = world.release(student := world.student())
    monkeypatch.setattr("genkd.provenance.node_keys.P256_ALGORITHM", ec.ECDSA(hashes.SHA256()))
    second = world.release(student)
    assert first["model.sig"] != second["model.sig"]
    assert world.submit(first).accepted
    assert world.submit(second).duplicate
    assert world.on_disk() == kept(first)


def test_a_second_different_release_of_a_node_in_the_round_is_refused(world: World) -> None:
    first, second = world.release(), world.release()
    assert world.submit(first).accepted
    result = world.submit(second)
    assert not result.accepted
    assert "its node has another release in this round" in result.reason
    assert world.on_disk() == kept(first)


def test_a_replay_in_the_next_round_is_refused_and_the_first_acceptance_stays(
    world: World,
) -> None:
    files = world.release()
    first = world.submit(files)
    result = world.submit(files, round=ROUND + 1)
    assert f"round {ROUND}" in result.reason
    assert list(world.store.accepted(RUN, ROUND)) == [first]


def test_a_round_that_is_merged_takes_no_release(world: World) -> None:
    intake = world.intake()
    world.store.advance(RUN, ROUND, RoundState.MERGED)
    result = intake.submit(world.release(), SENDER)
    assert (result.accepted, result.reason) == (False, "round 1 is merged: it takes no releases")
    assert world.on_disk() == []


def test_what_was_refused_is_looked_at_anew_when_it_comes_again(world: World) -> None:
    files = world.release(keys=world.stranger)
    assert "is not enrolled" in world.submit(files).reason
    world.enrol(world.stranger)
    assert world.submit(files).accepted
    assert len(list(world.store.submissions(RUN, ROUND))) == 1


# ------------------------------------------------------------------ out of proportion to the others


def test_who_is_far_from_the_median_is_refused_once_all_are_here(world: World) -> None:
    """Each is within ten times the shared student's size, yet not of one another's."""
    honest = [make_keys(500 + 10 * n) for n in range(3)]
    for keys in honest:
        world.enrol(keys)
    small = [world.student(change=lambda t: t["fc.weight"].__imul__(0.2)) for _ in honest]
    for keys, student in zip(honest, small, strict=True):
        assert world.submit(world.release(student, keys=keys)).accepted
    large = world.altered(lambda t: t["fc.weight"].__imul__(9))
    assert world.submit(large).accepted
    (refused,) = world.intake().refuse_outliers()
    assert refused.node == world.node.address
    assert "out of proportion to the median of its round" in refused.reason
    assert {one.node for one in world.store.accepted(RUN, ROUND)} == {k.address for k in honest}
    assert world.intake().refuse_outliers() == []


def test_two_releases_have_no_median(world: World) -> None:
    world.submit(world.release(world.student(change=lambda t: t["fc.weight"].__imul__(0.2))))
    large = world.student(change=lambda t: t["fc.weight"].__imul__(9))
    world.submit(world.release(large, keys=world.other))
    assert world.intake().refuse_outliers() == []


# ------------------------------------------------------------------ what is nobody's fault


def silent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> Block:
        raise CannotCheck("the chain does not answer", hint="")

    monkeypatch.setattr(world.chain, "look_up", unreachable)


def another_chain(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.chain, "chain_id", lambda: 5)


def another_contract(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.chain, "fault_of_contract", lambda: "another contract is there")


def about_something_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = receipt(world.release())
    look_up = world.chain.look_up
    monkeypatch.setattr(
        world.chain, "look_up", lambda *_: look_up(other.record, other.signature, ())
    )


def reorganising(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.chain, "block", lambda number: None)


@pytest.mark.parametrize(
    "fault", [silent, another_chain, another_contract, about_something_else, reorganising]
)
def test_a_chain_that_cannot_be_asked_says_nothing_about_the_release(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    files = world.release()
    with monkeypatch.context() as patch:
        fault(world, patch)
        with pytest.raises(CannotCheck):
            world.submit(files)
        assert list(world.store.submissions(RUN, ROUND)) == []
        assert world.on_disk() == []
    assert world.submit(files).accepted


@pytest.mark.parametrize("name", FOUR)
def test_a_full_disk_loses_nothing_and_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from coordinator import intake as module

    write = module.atomic_write

    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            raise unwritable(path, OSError(errno.ENOSPC, "No space left on device"))
        write(path, data)

    files = world.release()
    with monkeypatch.context() as patch:
        patch.setattr(module, "atomic_write", full)
        with pytest.raises(ResourceExhausted, match="cannot be written") as caught:
            world.submit(files)
    assert "free some disk space" in caught.value.hint
    assert list(world.store.submissions(RUN, ROUND)) == []
    assert world.on_disk() == []
    assert world.submit(files).accepted


def test_a_disk_that_is_really_full_is_one_clear_error(world: World) -> None:
    """The kernel lets no file grow beyond 100 kB, as on a full disk."""
    files = world.release(world.student(size=400_000))
    intake = world.intake()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ResourceExhausted, match="cannot be written"):
            intake.submit(files, SENDER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert world.on_disk() == []


def test_a_store_that_cannot_be_written_accepts_nothing_and_the_repeat_does(world: World) -> None:
    intake, files = world.intake(), world.release()
    file = world.store._file
    file.execute(
        "CREATE TRIGGER full BEFORE INSERT ON submissions BEGIN SELECT RAISE(ABORT, ''); END"
    )
    with pytest.raises(InputFileRefused, match="store"):
        intake.submit(files, SENDER)
    file.execute("DROP TRIGGER full")
    assert list(world.store.accepted(RUN, ROUND)) == []
    assert intake.submit(files, SENDER).accepted  # its files lay there already, without a row
    assert world.on_disk() == kept(files)


# ------------------------------------------------------------------ kills


def test_killed_at_every_step_each_release_counts_once_and_nothing_is_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_intake.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len([one for one in rounds if one["killed"]]) > 20
    assert not rounds[-1]["killed"]
    for one in rounds:
        # Before: at most what was finished. After the same submissions again: each once.
        assert one["acknowledged"] <= one["counted_before"] <= 2
        assert one["counted"] == 2
        assert one["files"] == 8, one
        assert one["left"] == [], one


# ------------------------------------------------------------------ many


def test_submissions_at_once_count_each_once(world: World) -> None:
    nodes = [world.node, world.other]
    all_files = [world.release(keys=keys) for keys in nodes for _ in range(2)]
    intake = world.intake()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: intake.submit(all_files[n % 4], n), range(24)))
    firsts = [one for one in results if one.accepted and not one.duplicate]
    assert sorted(one.node for one in firsts) == sorted(keys.address for keys in nodes)
    assert len(list(world.store.accepted(RUN, ROUND))) == 2
    assert len(world.on_disk()) == 8


def test_of_many_submissions_each_valid_one_counts_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    outcome = run_submissions(tmp_path / "federation", 60, invalid=0.1, student_bytes=4096)
    assert outcome.exactly_once, outcome
    assert (outcome.valid, outcome.duplicates, outcome.refused) == (48, 6, 6)


def test_taking_in_a_release_needs_one_more_copy_of_the_student_and_no_second(
    world: World,
) -> None:
    size = 2**23
    world.start.write_bytes(student_file(0, size=size))
    intake, files = world.intake(), world.release(world.student(size=size))
    tracemalloc.start()
    try:
        assert intake.submit(files, SENDER).accepted
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size + 6 * 2**20  # one copy, and the chunks in which it is measured


# ------------------------------------------------------------------ the shared student


def test_a_shared_student_that_names_no_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / STUDENT_NAME
    path.write_bytes(student_file(0, card=dict(CARD) | {"class_names": None}))
    with pytest.raises(InputFileRefused, match="does not name its classes"):
        SharedStudent.read(path)


def test_half_precision_has_the_same_size(tmp_path: Path) -> None:
    def halve(tensors: dict[str, np.ndarray]) -> None:
        tensors["fc.weight"] = tensors["fc.weight"].astype("<f2")

    sizes = []
    for name, change in (("full", lambda tensors: None), ("half", halve)):
        path = tmp_path / name
        path.write_bytes(student_file(0, size=3 * 2**20, change=change))  # several chunks
        sizes.append(weight_size(path, read_header(path, STUDENT_FILE)))
    assert sizes[1].weights == pytest.approx(sizes[0].weights, rel=1e-3)
    assert sizes[0].statistics == pytest.approx(0.5**0.5)  # means 0, variances 1
    assert sizes[0].weights == pytest.approx(0.1, rel=0.01)  # as `student_file` draws them


def test_weights_of_eight_bits_are_refused_for_nobody_measures_them(tmp_path: Path) -> None:
    path = tmp_path / STUDENT_NAME
    path.write_bytes(student_file(0, change=lambda t: t.update(x=np.ones((2, 2), np.uint8))))
    with pytest.raises(InputFileRefused, match="the tensor x is of F8_E4M3"):
        weight_size(path, read_header(path, STUDENT_FILE))

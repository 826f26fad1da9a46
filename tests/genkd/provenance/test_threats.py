"""Each threat of the design, by its name: on the registry in memory and on a real Anvil."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genkd.errors import CannotCheck
from genkd.provenance import verify
from genkd.provenance.chain import AgreeingReaders, Answer, Block, Entry, Verdict
from genkd.provenance.draft import build_release
from genkd.provenance.memory_chain import Reverted
from genkd.provenance.merkle import MerkleTree, leaf_hash
from genkd.provenance.record import (
    Acknowledgement,
    Revocation,
    Rotation,
    StudentRecord,
    TeacherMessage,
    key_hash,
)
from genkd.provenance.secp256k1 import N, recover_address
from genkd.provenance.typed_data import Domain, keccak256
from genkd.provenance.verification import Status, Verification

Workshop = Any  # conftest.Workshop
RUN = keccak256(b"run")
FILES = ("student.safetensors", "provenance.json", "model.sig", "receipt.json")


@pytest.fixture(params=["memory", "anvil"])
def world(request: pytest.FixtureRequest) -> Workshop:
    return request.getfixturevalue("workshop" if request.param == "memory" else "anvil_workshop")


def check(w: Workshop, path: Path, chain: Any = None) -> Verification:
    return verify(path, policy=w.policy, chain=chain or w.chain)


def failed_number(w: Workshop, path: Path) -> int | None:
    failed = check(w, path).failed
    return None if failed is None else failed.number


def register(w: Workshop, path: Path) -> None:
    receipt = w.receipt(path)
    w.chain.register(receipt.record, receipt.signature)


# --- replay ---


@pytest.mark.parametrize("where", ["chain", "contract"])
def test_replay_on_another_chain_or_contract(where: str, world: Workshop) -> None:
    here = world.chain.domain
    there = Domain(1, here.contract) if where == "chain" else Domain(here.chain_id, "0x" + "9" * 40)
    record = world.receipt(world.sign()).record
    with pytest.raises(Reverted, match="BadSignature"):
        world.chain.register(record, world.node.sign(record, there))
    assert failed_number(world, world.sign(domain=there)) == 5


@pytest.mark.parametrize("changes", [{"run_id": keccak256(b"another run")}, {"round": 2}])
def test_replay_in_another_run_or_round(changes: dict[str, Any], world: Workshop) -> None:
    world.chain.open_run(keccak256(b"another run"), world.coordinator.address)
    path = world.publish()
    receipt = world.receipt(path)
    with pytest.raises(Reverted, match="BadSignature"):
        world.chain.register(replace(receipt.record, **changes), receipt.signature)
    # A root of the other run or round that holds the very same record id says nothing of it.
    unrecorded = world.sign()
    record_id = world.receipt(unrecorded).record_id()
    where = {"run_id": RUN, "round": 1} | changes
    root = MerkleTree([record_id]).root
    world.chain.commit_round(where["run_id"], where["round"], root, world.coordinator)
    world.include(unrecorded, ())
    assert failed_number(world, unrecorded) == 7


# --- signatures and hashes ---


def test_high_s_twin(world: Workshop) -> None:
    receipt = world.receipt(world.sign())
    s = N - int.from_bytes(receipt.signature[32:64], "big")
    parity = bytes([55 - receipt.signature[64]])
    twin = receipt.signature[:32] + s.to_bytes(32, "big") + parity
    with pytest.raises(Reverted, match="BadSignature"):
        world.chain.register(receipt.record, twin)


@pytest.mark.parametrize(
    "field", ["file_hash", "tensor_root", "metadata_hash", "parents_root", "node", "deadline"]
)
def test_hash_substitution_by_a_relayer(field: str, world: Workshop) -> None:
    receipt = world.receipt(world.sign())
    value: object = keccak256(b"another")
    if field == "node":
        value = world.other.address
    if field == "deadline":
        value = receipt.record.deadline + 1
    changes = {field: value}
    if field == "node":
        changes["teacher_commitment"] = world.commitment(world.other)
    with pytest.raises(Reverted, match="BadSignature"):
        world.chain.register(replace(receipt.record, **changes), receipt.signature)


def test_hash_substitution_in_a_release(world: Workshop) -> None:
    path, second = world.publish(), world.publish()
    shutil.copy(second / "student.safetensors", path)
    assert failed_number(world, path) == 2


def test_front_running_records_it_all_the_same(world: Workshop) -> None:
    """Whoever sends the node's signed record first, it is the node's record."""
    path = world.sign()
    register(world, path)  # the front runner: it saw the transaction and sent a copy
    with contextlib.suppress(Reverted):  # of AlreadyThere the client makes a success
        register(world, path)
    assert check(world, path).status is Status.VALID


def test_copycat_neither_blocks_nor_overwrites(world: Workshop) -> None:
    draft = world.draft()
    path = build_release(world.folder, draft, world.node)
    stolen = replace(draft, teacher_commitment=world.commitment(world.other))
    copy = build_release(world.folder, stolen, world.other)
    register(world, copy)  # the copycat is first
    register(world, path)
    assert check(world, path).status is Status.VALID
    assert check(world, copy).status is Status.VALID  # it is the copycat's own claim ...
    mine = replace(world.policy, nodes=frozenset({world.node.address}))
    failed = verify(copy, policy=mine, chain=world.chain).failed
    assert failed is not None
    assert failed.number == 10  # ... and nobody takes it for the node's
    assert world.receipt(path).record.tensor_root == world.receipt(copy).record.tensor_root


def test_copycat_who_does_not_restamp_contradicts_the_file(world: Workshop) -> None:
    path, own = world.publish(), world.publish(world.other)
    shutil.copy(path / "student.safetensors", own)
    assert failed_number(world, own) == 2


# --- rounds ---


def test_second_root_for_a_round(world: Workshop) -> None:
    path = world.sign()
    world.commit_round(path)
    with pytest.raises(Reverted, match="AlreadyThere"):
        world.chain.commit_round(RUN, 1, keccak256(b"another history"), world.coordinator)
    assert check(world, path).status is Status.VALID


def test_root_by_somebody_who_does_not_coordinate_the_run(world: Workshop) -> None:
    with pytest.raises(Reverted, match="NotCoordinator"):
        world.chain.commit_round(RUN, 1, keccak256(b"root"), world.other)


def test_inner_node_as_leaf(world: Workshop) -> None:
    """A record cannot be chosen to be an inner node; the nearest is a proof from there on."""
    paths = [world.sign() for _ in range(4)]
    tree = world.commit_round(*paths)
    outsider = world.sign()
    record_id = world.receipt(outsider).record_id()
    for path in paths:
        inner = tree.proof(world.receipt(path).record_id())[1:]
        world.include(outsider, inner)
        assert failed_number(world, outsider) == 7
    assert leaf_hash(record_id) not in tree.proof(world.receipt(paths[0]).record_id())


# --- keys ---


def test_stolen_key_before_and_after_the_theft(world: Workshop) -> None:
    before = world.publish()
    world.chain.mine(100)
    stolen_at = world.chain.now
    world.chain.mine(100)
    after = world.publish()
    assert check(world, after).status is Status.VALID  # nobody has noticed yet
    world.chain.remove_node(world.node.address, stolen_at)
    assert check(world, before).status is Status.VALID
    assert failed_number(world, after) == 7
    with pytest.raises(Reverted, match="NotANode"):
        register(world, world.sign())


def test_thiefs_revocation_is_void_once_the_theft_is_dated(world: Workshop) -> None:
    path = world.publish()
    world.chain.mine(100)
    stolen_at = world.chain.now
    message = Revocation(world.receipt(path).record_id(), 2, world.node.address)
    world.chain.revoke(message, world.node.sign(message, world.chain.domain))
    assert failed_number(world, path) == 8
    world.chain.remove_node(world.node.address, stolen_at)
    assert check(world, path).status is Status.VALID


def test_thiefs_rotation(world: Workshop) -> None:
    """He has the current key; the next key's hash is on the chain, and he has no key to it."""
    thief = world.node_keys(0x7411EF)
    rotation = Rotation(
        world.node.address,
        thief.address,
        key_hash(thief.address),
        thief.profile.profile_hash(),
        world.chain.now + 3600,
    )
    with pytest.raises(Reverted, match="WrongNextKey"):
        world.chain.rotate(rotation, thief.profile, thief.sign(rotation, world.chain.domain))
    # To the right key, but without its signature.
    honest = world.node_keys(0xA11CE + 1)
    rotation = replace(rotation, new_key=honest.address, profile_hash=honest.profile.profile_hash())
    with pytest.raises(Reverted, match="BadSignature"):
        world.chain.rotate(rotation, honest.profile, world.node.sign(rotation, world.chain.domain))


def test_expired_deadline(world: Workshop) -> None:
    path = world.sign(deadline=world.chain.now + 50)
    world.chain.mine(100)
    with pytest.raises(Reverted, match="Expired"):
        register(world, path)
    world.commit_round(path)
    assert failed_number(world, path) == 7


def test_uncommitted_teacher(world: Workshop) -> None:
    path = world.sign(teacher_commitment=world.commitment(world.node, b"another"))
    with pytest.raises(Reverted, match="TeacherNotCommitted"):
        register(world, path)
    world.commit_round(path)
    assert failed_number(world, path) == 7


def test_teacher_committed_by_somebody_else(world: Workshop) -> None:
    message = TeacherMessage(keccak256(b"x"), world.node.address, world.chain.now + 3600)
    with pytest.raises(Reverted, match="BadSignature"):
        world.chain.commit_teacher(message, world.other.sign(message, world.chain.domain))


# --- mix and match ---

SWAPS = [s for count in (1, 2, 3) for s in itertools.combinations(FILES, count)]


@pytest.mark.parametrize("names", SWAPS, ids="+".join)
@pytest.mark.parametrize("owner", ["node", "other"])
def test_mix_and_match_of_valid_parts(names: Sequence[str], owner: str, workshop: Workshop) -> None:
    """Every part is genuine, every signature good; they only do not belong together."""
    path, second = workshop.publish(), workshop.publish(getattr(workshop, owner))
    for name in names:
        shutil.copy(second / name, path)
    assert check(workshop, path).status is Status.NOT_VALID


# --- the chain ---


def test_reorg_then_resubmission(world: Workshop) -> None:
    path = world.publish()
    assert check(world, path).status is Status.VALID
    world.chain.reorganise(1)
    assert failed_number(world, path) == 7
    register(world, path)
    world.include(path)
    assert check(world, path).status is Status.VALID


def test_coordinator_that_censors(world: Workshop) -> None:
    """It took the release, signed for it, and left it out: the node registers it by itself."""
    path, favoured = world.sign(), world.sign(world.other)
    record = world.receipt(path).record
    record_id = world.receipt(path).record_id()
    word = Acknowledgement(record_id, record.run_id, record.round, world.chain.now)
    signature = world.coordinator.sign(word, world.chain.domain)
    world.commit_round(favoured)
    assert failed_number(world, path) == 7
    register(world, path)
    assert check(world, path).status is Status.VALID
    signer = recover_address(word.digest(world.chain.domain), signature)
    assert signer == world.coordinator.address


class Endpoint:
    """An endpoint that answers as the chain does, but for what a test overrides."""

    def __init__(self, chain: Any) -> None:
        self.inner = chain

    def chain_id(self) -> int:
        return int(self.inner.chain_id())

    def fault_of_contract(self) -> str | None:
        fault: str | None = self.inner.fault_of_contract()
        return fault

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        answer: Answer = self.inner.look_up(record, signature, proof)
        return answer

    def block(self, number: int) -> Block | None:
        block: Block | None = self.inner.block(number)
        return block

    def entries(self, record_ids: Sequence[bytes]) -> Sequence[Entry | None]:
        entries: Sequence[Entry | None] = self.inner.entries(record_ids)
        return entries


class LyingEndpoint(Endpoint):
    """It changes what the chain says of a record."""

    def __init__(self, chain: Any, **lies: object) -> None:
        super().__init__(chain)
        self.lies = lies

    def look_up(self, record: StudentRecord, signature: bytes, proof: Sequence[bytes]) -> Answer:
        answer = super().look_up(record, signature, proof)

        def lie(verdict: Verdict) -> Verdict:
            return replace(verdict, **self.lies)  # type: ignore[arg-type]

        return Answer(lie(answer.confirmed), lie(answer.latest))


NOW = 1_700_000_100
LIES: dict[str, dict[str, object]] = {
    "it is recorded": {"recorded_at": NOW},
    "it is in order": {"in_order": True},
    "it is recorded and in order": {"recorded_at": NOW, "in_order": True},
    "it is registered": {"registered_at": NOW},
    "it is registered and recorded, but not in order": {"registered_at": NOW, "recorded_at": NOW},
    "it was recorded in another year": {
        "registered_at": 1,
        "recorded_at": 1,
        "in_order": True,
    },
    "it was recorded after its deadline": {
        "registered_at": 2**40,
        "recorded_at": 2**40,
        "in_order": True,
    },
    "about another record": {"record_id": keccak256(b"another")},
    "about another node's profile": {
        "registered_at": NOW,
        "recorded_at": NOW,
        "in_order": True,
        "profile_hash": bytes(32),
    },
    "about a node not enrolled": {
        "registered_at": NOW,
        "recorded_at": NOW,
        "in_order": True,
        "enrolled_since": 0,
        "enrolled_until": 0,
    },
    "in negative numbers": {"registered_at": -1, "recorded_at": -1, "in_order": True},
}


@pytest.mark.parametrize("lies", LIES.values(), ids=LIES)
def test_lying_rpc_is_never_valid(lies: dict[str, object], workshop: Workshop) -> None:
    path = workshop.sign()
    for _ in range(200):
        workshop.chain.mine()
    verification = check(workshop, path, LyingEndpoint(workshop.chain, **lies))
    assert verification.status is not Status.VALID


def test_rpc_that_lies_without_a_flaw_is_found_out_by_a_second_one(workshop: Workshop) -> None:
    for _ in range(200):
        workshop.chain.mine()
    path = workshop.sign()
    time = workshop.chain.now
    liar = LyingEndpoint(workshop.chain, registered_at=time, recorded_at=time, in_order=True)
    both = AgreeingReaders([liar, workshop.chain])
    verification = check(workshop, path, both)
    assert verification.status is Status.CANNOT_CHECK
    assert "disagree" in verification.summary
    honest = AgreeingReaders([Endpoint(workshop.chain), workshop.chain])
    assert check(workshop, workshop.publish(), honest).status is Status.VALID


def test_rpc_that_hides_a_revocation_is_found_out_by_a_second_one(workshop: Workshop) -> None:
    path = workshop.publish()
    workshop.chain.revoke_as_owner(workshop.receipt(path).record_id(), 1)
    liar = LyingEndpoint(workshop.chain, revoked_by_owner=0)
    both = AgreeingReaders([workshop.chain, liar])
    assert check(workshop, path, both).status is Status.CANNOT_CHECK


def test_nobody_agrees_with_nobody() -> None:
    with pytest.raises(ValueError, match="at least one"):
        AgreeingReaders([])


class SilentEndpoint(Endpoint):
    """It answers until a question, and counts how often it is asked after that."""

    def __init__(self, chain: Any, question: str) -> None:
        super().__init__(chain)
        self.question = question
        self.asked_in_vain = 0

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "question"):
            self.asked_in_vain += 1
            raise CannotCheck("the endpoint does not answer", hint="ask another")
        return object.__getattribute__(self, name)


@pytest.mark.parametrize(
    ("question", "number"),
    [("chain_id", 6), ("fault_of_contract", 6), ("look_up", 7), ("block", 7), ("entries", 9)],
)
def test_silent_rpc_cannot_be_checked(question: str, number: int, workshop: Workshop) -> None:
    parents = [workshop.publish() for _ in range(3)]
    ids = tuple(workshop.receipt(path).record_id() for path in parents)
    path = workshop.publish(parents=ids)
    shutil.rmtree(parents[0])
    endpoint = SilentEndpoint(workshop.chain, question)
    verification = check(workshop, path, endpoint)
    assert verification.status is Status.CANNOT_CHECK
    unmade = [one.number for one in verification.checks if one.outcome == "not_checked"]
    assert unmade[0] == number
    assert endpoint.asked_in_vain == 1, "a silent endpoint is waited for once"


@pytest.mark.parametrize("fault", ["there is no contract there", "it is another contract"])
def test_other_code_at_the_address_cannot_be_checked(fault: str, workshop: Workshop) -> None:
    class Elsewhere(Endpoint):
        def fault_of_contract(self) -> str | None:
            return fault

    verification = check(workshop, workshop.publish(), Elsewhere(workshop.chain))
    assert verification.status is Status.CANNOT_CHECK
    assert verification.checks[6].detail == fault


def test_another_chain_at_the_endpoint_cannot_be_checked(workshop: Workshop) -> None:
    class Elsewhere(Endpoint):
        def chain_id(self) -> int:
            return 1

    verification = check(workshop, workshop.publish(), Elsewhere(workshop.chain))
    assert verification.status is Status.CANNOT_CHECK
    assert "serves chain 1" in verification.checks[6].detail


def test_rpc_that_forgets_a_confirmed_record_cannot_be_checked(workshop: Workshop) -> None:
    path = workshop.publish()
    empty = workshop.chain.look_up(
        replace(workshop.receipt(path).record, round=9), workshop.receipt(path).signature, ()
    )

    class Forgetful(Endpoint):
        def look_up(self, *arguments: Any) -> Answer:
            answer = super().look_up(*arguments)
            nothing = replace(empty.latest, record_id=answer.latest.record_id)
            return Answer(answer.confirmed, nothing)

    assert check(workshop, path, Forgetful(workshop.chain)).status is Status.CANNOT_CHECK

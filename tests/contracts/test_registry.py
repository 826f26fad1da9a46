"""Every call of the registry on a real chain: done, repeated, refused, reorganised away."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from contracts.account import LocalSigner, Written
from contracts.development_chain import fund
from contracts.refusals import KeyRefusedByRegistry, RegistryRefused
from contracts.registry import RegistryClient
from genkd.errors import CannotCheck, KeyOrSignatureError, Stopped
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.record import ZERO_HASH, StudentRecord, key_hash
from genkd.provenance.secp256k1 import N, address_of, sign_digest
from genkd.provenance.typed_data import Domain, keccak256

Federation = Any  # conftest.Federation
GAS_SNAPSHOT = Path(__file__).parents[2] / "contracts" / "snapshots" / "StudentRegistry.json"


def registered(federation: Federation, record: StudentRecord) -> bool:
    return federation.client(federation.stranger).state.is_registered(
        record.digest(federation.domain)
    )


# ---------------------------------------------------------------------- done, and repeated


def test_registered_student_is_found_where_its_transaction_put_it(federation: Federation) -> None:
    record = federation.student(federation.alice)
    client = federation.client(federation.stranger)
    written = client.register(record, federation.sign(federation.alice, record))
    placement = client.state.registration(record.digest(federation.domain))
    assert (placement.transaction, placement.block) == (written.transaction, written.block)
    assert not written.already_there


def test_front_runner_leaves_the_author_with_success_and_one_record(federation: Federation) -> None:
    record = federation.student(federation.alice)
    signature = federation.sign(federation.alice, record)
    first = federation.client(federation.stranger).register(record, signature)
    second = federation.client(federation.alice).register(record, signature)
    assert not first.already_there
    assert second == Written()
    entry = federation.client(federation.alice).state.entries([record.digest(federation.domain)])[0]
    assert entry is not None
    assert entry.node == address_of(federation.alice)


def test_every_call_is_safe_to_repeat(federation: Federation) -> None:
    owner = federation.client(federation.owner)
    record = federation.student(federation.alice)
    record_id = federation.register(federation.alice, record)
    bob = federation.profile(federation.bob)
    teacher = federation.teacher(federation.alice)
    revocation = federation.revocation(federation.alice, record_id)
    rotation = federation.rotation(federation.alice, federation.alice_next)
    for repeat in (False, True):
        calls = [
            owner.add_node(address_of(0xCAFE), ZERO_HASH, bob.profile_hash()),
            owner.open_run(
                keccak256(b"other"), address_of(federation.coordinator), federation.configuration
            ),
            owner.revoke_as_owner(record_id, 1),
            owner.revoke(revocation, federation.sign(federation.alice, revocation)),
        ]
        # What a key does in the second of its rotation counts as done after it.
        federation.mine(seconds=2)
        calls += [
            owner.rotate(rotation, federation.sign(federation.alice_next, rotation)),
            owner.remove_node(bob.node, 5),
        ]
        assert [call.already_there for call in calls] == [repeat] * len(calls)
    repeated = owner.commit_teacher(teacher, federation.sign(federation.alice, teacher))
    assert repeated.already_there


def test_what_was_written_can_be_read_back(federation: Federation) -> None:
    state = federation.client(federation.owner).state
    alice = federation.profile(federation.alice, federation.alice_next)
    node = state.node(alice.node)
    assert (node.identity, node.profile_hash) == (alice.node, alice.profile_hash())
    assert state.next_key_hash(alice.node) == key_hash(address_of(federation.alice_next))
    assert state.run(federation.run_id).coordinator == address_of(federation.coordinator)
    assert state.run(federation.run_id).config_hash == federation.configuration
    assert 0 < state.teacher_committed_at(federation.commitment, alice.node) <= federation.now()
    assert state.owner() == address_of(federation.owner)


# ---------------------------------------------------------------------- other things in the place


def test_second_root_for_a_round_is_refused_and_the_same_one_is_not(
    federation: Federation,
) -> None:
    coordinator = federation.client(federation.coordinator)
    root = keccak256(b"root")
    assert not coordinator.commit_round(federation.run_id, 1, root, 3, ZERO_HASH).already_there
    assert coordinator.commit_round(federation.run_id, 1, root, 3, ZERO_HASH).already_there
    for other in (keccak256(b"other"), root):
        with pytest.raises(RegistryRefused, match="something else") as refused:
            coordinator.commit_round(federation.run_id, 1, other, 4, ZERO_HASH)
        assert refused.value.reason == "AlreadyThere"


def test_run_or_node_that_is_there_in_another_shape_is_refused(federation: Federation) -> None:
    owner = federation.client(federation.owner)
    with pytest.raises(RegistryRefused, match="something else"):
        owner.open_run(federation.run_id, address_of(federation.coordinator), keccak256(b"another"))
    with pytest.raises(RegistryRefused, match="something else"):
        owner.add_node(address_of(federation.alice), ZERO_HASH, keccak256(b"another"))


def test_removed_node_is_not_taken_for_an_enrolled_one(federation: Federation) -> None:
    owner = federation.client(federation.owner)
    bob = federation.profile(federation.bob)
    owner.remove_node(bob.node, federation.now())
    with pytest.raises(RegistryRefused, match="something else"):
        owner.add_node(bob.node, bob.message.next_key_hash, bob.profile_hash())


# ---------------------------------------------------------------------- refused


def test_uncommitted_teacher_is_refused_by_name(federation: Federation) -> None:
    record = federation.student(federation.alice, teacher_commitment=keccak256(b"none"))
    with pytest.raises(RegistryRefused, match="has not committed") as refused:
        federation.register(federation.alice, record)
    assert refused.value.reason == "TeacherNotCommitted"


def test_expired_deadline_is_refused_by_name(federation: Federation) -> None:
    record = federation.student(federation.alice)
    federation.mine(seconds=31 * 24 * 3600)
    with pytest.raises(RegistryRefused, match="deadline") as refused:
        federation.register(federation.alice, record)
    assert refused.value.reason == "Expired"


def test_unknown_run_is_refused_by_name(federation: Federation) -> None:
    with pytest.raises(RegistryRefused, match="run is not open"):
        federation.register(
            federation.alice, federation.student(federation.alice, run_id=ZERO_HASH)
        )


def test_stranger_is_refused_by_name(federation: Federation) -> None:
    with pytest.raises(KeyRefusedByRegistry, match="not enrolled") as refused:
        federation.register(federation.stranger, federation.student(federation.stranger))
    assert refused.value.exit_code == 7


def test_high_s_twin_of_a_signature_is_refused(federation: Federation) -> None:
    record = federation.student(federation.alice)
    signature = federation.sign(federation.alice, record)
    s = N - int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])
    with pytest.raises(KeyRefusedByRegistry, match="signature"):
        federation.client(federation.stranger).register(record, twin)


@pytest.mark.parametrize("where", ["chain", "contract"])
def test_signature_replayed_from_another_chain_or_contract_is_refused(
    federation: Federation, where: str
) -> None:
    record = federation.student(federation.alice)
    here = federation.domain
    elsewhere = {
        "chain": Domain(here.chain_id + 1, here.contract),
        "contract": Domain(here.chain_id, address_of(0xBAD)),
    }
    signature = sign_digest(federation.alice, record.digest(elsewhere[where]))
    with pytest.raises(KeyRefusedByRegistry, match="signature"):
        federation.client(federation.stranger).register(record, signature)


@pytest.mark.parametrize("where", ["chain", "contract"])
def test_nothing_is_sent_to_another_chain_or_contract(federation: Federation, where: str) -> None:
    here = federation.domain
    elsewhere = {
        "chain": Domain(here.chain_id + 1, here.contract),
        "contract": Domain(here.chain_id, address_of(0xBAD)),
    }
    signer = LocalSigner(federation.stranger)
    astray = RegistryClient(federation.rpc_url, elsewhere[where], signer=signer)
    record = federation.student(federation.alice)
    before = federation.rpc.quantity("eth_getTransactionCount", signer.address, "pending")
    with pytest.raises(CannotCheck):
        astray.register(record, federation.sign(federation.alice, record))
    assert federation.rpc.quantity("eth_getTransactionCount", signer.address, "pending") == before


def test_thief_of_the_current_key_cannot_rotate(federation: Federation) -> None:
    rotation = federation.rotation(federation.alice, federation.stranger)
    with pytest.raises(KeyRefusedByRegistry) as refused:
        federation.client(federation.stranger).rotate(
            rotation, federation.sign(federation.stranger, rotation)
        )
    assert refused.value.reason == "WrongNextKey"


def test_only_the_owner_and_the_coordinator_make_their_calls(federation: Federation) -> None:
    stranger = federation.client(federation.stranger)
    with pytest.raises(KeyRefusedByRegistry, match="own"):
        stranger.open_run(ZERO_HASH, address_of(1), ZERO_HASH)
    with pytest.raises(KeyRefusedByRegistry, match="coordinator"):
        stranger.commit_round(federation.run_id, 1, keccak256(b"root"), 1, ZERO_HASH)


def test_removal_is_not_taken_back(federation: Federation) -> None:
    owner = federation.client(federation.owner)
    bob = address_of(federation.bob)
    owner.remove_node(bob, 1000)
    with pytest.raises(RegistryRefused, match="nor come later"):
        owner.remove_node(bob, 2000)


# ---------------------------------------------------------------------- who pays, and with what


def test_account_without_ether_is_told_so(federation: Federation) -> None:
    record = federation.student(federation.alice)
    poor = federation.client(0xDEAD)
    with pytest.raises(KeyOrSignatureError, match="cannot pay"):
        poor.register(record, federation.sign(federation.alice, record))


def test_two_processes_with_one_account_both_get_through(federation: Federation) -> None:
    records = [federation.student(federation.alice, round=i) for i in range(4)]
    federation.rpc.ask("evm_setAutomine", False)
    failures: list[BaseException] = []

    def work(record: StudentRecord) -> None:
        try:
            federation.register(federation.alice, record)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(record,)) for record in records]
    for thread in threads:
        thread.start()
    try:
        while alive := [thread for thread in threads if thread.is_alive()]:  # each has a patience
            federation.mine()
            alive[0].join(0.05)
    finally:
        federation.rpc.ask("evm_setAutomine", True)
    assert failures == []
    assert all(registered(federation, record) for record in records)


def test_transaction_that_is_not_mined_stops_and_a_repeat_goes_on(federation: Federation) -> None:
    record = federation.student(federation.alice)
    signature = federation.sign(federation.alice, record)
    hasty = RegistryClient(
        federation.rpc_url,
        federation.domain,
        signer=LocalSigner(federation.stranger),
        confirmations=0,
        patience=0.2,
    )
    federation.rpc.ask("evm_setAutomine", False)
    try:
        with pytest.raises(Stopped, match="not mined") as stopped:
            hasty.register(record, signature)
    finally:
        federation.rpc.ask("evm_setAutomine", True)
    assert stopped.value.exit_code == 75
    federation.mine()
    assert hasty.register(record, signature).already_there


def test_gas_on_the_chain_is_what_the_snapshot_promises(federation: Federation) -> None:
    promised = {name: int(gas) for name, gas in json.loads(GAS_SNAPSHOT.read_bytes()).items()}
    record = federation.student(federation.alice)
    register = federation.client(federation.stranger).register(
        record, federation.sign(federation.alice, record)
    )
    committed = federation.client(federation.coordinator).commit_round(
        federation.run_id, 1, keccak256(b"root"), 10_000, keccak256(b"aggregate")
    )
    # A zero byte less or more in a hash is 12 gas.
    assert register.gas == pytest.approx(promised["register"], abs=200)
    assert register.gas <= 75_000
    assert committed.gas == pytest.approx(promised["commitRound of 10000 students"], abs=200)
    assert committed.gas < 80_000


# ---------------------------------------------------------------------- confirmed, and reorganised


def test_record_is_awaited_until_it_is_confirmed(federation: Federation) -> None:
    record = federation.student(federation.alice)
    client = federation.client(federation.stranger, confirmations=3)
    signature = federation.sign(federation.alice, record)
    with pytest.raises(Stopped, match="not confirmed"):
        client.await_record(record, signature, patience=0.2)
    assert registered(federation, record)
    federation.mine(3)
    placement = client.await_record(record, signature, patience=5)
    assert placement == client.state.registration(record.digest(federation.domain))


def test_reorg_takes_the_record_and_the_repeat_records_it_once_more(
    federation: Federation,
) -> None:
    record = federation.student(federation.alice)
    client = federation.client(federation.stranger, confirmations=2)
    signature = federation.sign(federation.alice, record)
    federation.mine(5)
    client.register(record, signature)
    federation.rpc.ask("anvil_reorg", 3, [])
    assert not registered(federation, record)

    done: list[object] = []
    waiting = threading.Thread(
        target=lambda: done.append(client.await_record(record, signature, patience=30))
    )
    waiting.start()
    for _ in range(300):
        waiting.join(0.05)
        if not waiting.is_alive():
            break
        federation.mine()
    assert len(done) == 1
    assert registered(federation, record)


def test_round_is_awaited_and_found(federation: Federation) -> None:
    records = [
        federation.student(federation.alice, round=9, file_hash=keccak256(bytes([i])))
        for i in range(3)
    ]
    tree = MerkleTree([record.digest(federation.domain) for record in records])
    client = federation.client(federation.coordinator)
    placement = client.await_round(federation.run_id, 9, tree.root, 3, ZERO_HASH, patience=5)
    assert placement == client.state.round_placement(federation.run_id, 9)
    with pytest.raises(RegistryRefused):
        client.await_round(federation.run_id, 9, keccak256(b"other"), 3, ZERO_HASH, patience=5)


def test_placement_is_found_among_blocks_of_the_same_second(federation: Federation) -> None:
    federation.mine(20)
    records = [federation.student(federation.alice, round=i) for i in range(3)]
    for record in records:
        federation.register(federation.alice, record)
        federation.mine(5)
    state = federation.client(federation.stranger).state
    found = [state.registration(record.digest(federation.domain)) for record in records]
    assert len({one.transaction for one in found}) == 3
    for one in found:
        block = state.block(one.block)
        assert block is not None
        assert one.transaction in block.transactions


def test_placement_of_what_is_not_there_cannot_be_told(federation: Federation) -> None:
    with pytest.raises(CannotCheck):
        federation.client(federation.stranger).state.registration(keccak256(b"nothing"))


def test_next_key_takes_over_with_a_new_profile(federation: Federation) -> None:
    rotation = federation.rotation(federation.alice, federation.alice_next)
    client = federation.client(federation.stranger)
    client.rotate(rotation, federation.sign(federation.alice_next, rotation))
    node = client.state.node(address_of(federation.alice_next))
    assert node.identity == address_of(federation.alice)
    assert node.profile_hash == rotation.profile_hash
    record = federation.student(federation.alice_next)
    federation.register(federation.alice_next, record)
    assert registered(federation, record)
    with pytest.raises(KeyRefusedByRegistry, match="not enrolled"):
        federation.register(federation.alice, federation.student(federation.alice))


def test_signer_prints_as_its_address_alone(federation: Federation) -> None:
    signer = LocalSigner(federation.alice)
    fund(federation.rpc_url, signer.address)
    assert repr(signer) == f"LocalSigner({signer.address})"
    assert f"{federation.alice:x}" not in repr(vars(federation.client(federation.alice)))

"""What a verifier reads from a real chain, and from endpoints that lie about it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.artifact import expected_code
from contracts.chain_reader import Confirmations, RegistryReader
from genkd.errors import CannotCheck, ConfigurationError
from genkd.provenance.chain import Verdict, require_order, require_sense
from genkd.provenance.merkle import MerkleTree
from genkd.provenance.record import ZERO_HASH, StudentRecord
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.typed_data import Domain, keccak256

Federation = Any  # conftest.Federation
ROOT = Path(__file__).parents[2]
WORD = 32


def reader(
    federation: Federation, confirmations: Confirmations = 0, url: str = ""
) -> RegistryReader:
    return RegistryReader(
        url or federation.rpc_url, federation.domain, confirmations=confirmations, timeout=5
    )


# ---------------------------------------------------------------------- true answers


def test_registered_student_is_in_order(federation: Federation) -> None:
    record = federation.student(federation.alice)
    record_id = federation.register(federation.alice, record)
    verdict = reader(federation).look_up(record, b"", ()).latest
    profile = federation.profile(federation.alice, federation.alice_next)
    require_sense(verdict, record, record_id)
    require_order(verdict, record, profile.profile_hash())
    assert verdict.in_order
    assert verdict.identity == address_of(federation.alice)
    assert verdict.recorded_at == verdict.registered_at == federation.now()
    assert (verdict.committed_at, verdict.revoked_by_node, verdict.revoked_by_owner) == (0, 0, 0)


def test_students_of_a_round_are_in_order_by_their_proofs(federation: Federation) -> None:
    records = [
        federation.student(federation.alice, file_hash=keccak256(bytes([i]))) for i in range(5)
    ]
    tree = MerkleTree([record.digest(federation.domain) for record in records])
    federation.client(federation.coordinator).commit_round(
        federation.run_id, 7, tree.root, 5, ZERO_HASH
    )
    for record in records:
        signature = federation.sign(federation.alice, record)
        proof = tree.proof(record.digest(federation.domain))
        verdict = reader(federation).look_up(record, signature, proof).latest
        require_sense(verdict, record, record.digest(federation.domain))
        assert verdict.in_order
        assert verdict.recorded_at == verdict.committed_at == federation.now()
    for other in (proof[:-1], proof[::-1], (*proof, tree.root), ()):
        assert not reader(federation).look_up(record, signature, other).latest.in_order
    assert not reader(federation).look_up(record, b"", proof).latest.in_order


def test_withdrawal_is_told_with_its_reason(federation: Federation) -> None:
    record = federation.student(federation.alice)
    record_id = federation.register(federation.alice, record)
    revocation = federation.revocation(federation.alice, record_id, reason=3)
    federation.client(federation.owner).revoke(
        revocation, federation.sign(federation.alice, revocation)
    )
    verdict = reader(federation).look_up(record, b"", ()).latest
    assert (verdict.revoked_by_node, verdict.reason) == (federation.now(), 3)
    federation.client(federation.owner).revoke_as_owner(record_id, 1)
    assert reader(federation).look_up(record, b"", ()).latest.revoked_by_owner == federation.now()
    entry = reader(federation).entries([record_id])[0]
    assert entry is not None
    assert entry.revoked


def test_unknown_student_is_not_recorded(federation: Federation) -> None:
    record = federation.student(federation.stranger)
    verdict = reader(federation).look_up(record, b"", ()).latest
    require_sense(verdict, record, record.digest(federation.domain))
    assert (verdict.recorded_at, verdict.in_order, verdict.profile_hash) == (0, False, ZERO_HASH)


def test_stolen_key_removed_from_the_theft_voids_only_what_came_after(
    federation: Federation,
) -> None:
    before = federation.student(federation.alice, round=1)
    federation.register(federation.alice, before)
    federation.mine(seconds=1000)
    theft = federation.now()
    after = federation.student(federation.alice, round=2)
    federation.mine(seconds=1000)
    federation.register(federation.alice, after)
    federation.client(federation.owner).remove_node(address_of(federation.alice), theft)
    read = reader(federation)
    assert read.look_up(before, b"", ()).latest.in_order
    assert not read.look_up(after, b"", ()).latest.in_order


def test_record_is_confirmed_by_the_blocks_upon_it(federation: Federation) -> None:
    federation.mine(5)
    record = federation.student(federation.alice)
    federation.register(federation.alice, record)
    answer = reader(federation, 3).look_up(record, b"", ())
    assert (answer.confirmed.recorded_at, answer.latest.in_order) == (0, True)
    assert answer.latest.block - answer.confirmed.block == 3
    federation.mine(3)
    answer = reader(federation, 3).look_up(record, b"", ())
    assert answer.confirmed.in_order


def test_record_is_confirmed_by_the_chains_own_finality(federation: Federation) -> None:
    record = federation.student(federation.alice)
    federation.register(federation.alice, record)
    assert not reader(federation, "finalized").look_up(record, b"", ()).confirmed.in_order
    federation.mine(70)
    assert reader(federation, "finalized").look_up(record, b"", ()).confirmed.in_order


def test_nothing_is_confirmed_before_the_registry_was_deployed(federation: Federation) -> None:
    record = federation.student(federation.alice)
    federation.register(federation.alice, record)
    answer = reader(federation, 100_000).look_up(record, b"", ())
    assert answer.confirmed.block == 0
    assert not answer.confirmed.in_order
    assert not federation.client(federation.alice, 100_000).state.is_registered(
        record.digest(federation.domain), confirmed=True
    )


def test_reorg_takes_a_record_that_was_not_confirmed(federation: Federation) -> None:
    federation.mine(5)
    record = federation.student(federation.alice)
    federation.register(federation.alice, record)
    assert reader(federation).look_up(record, b"", ()).latest.in_order
    federation.rpc.ask("anvil_reorg", 2, [])
    assert not reader(federation).look_up(record, b"", ()).latest.in_order


def test_entries_of_many_parents_come_in_the_order_asked(federation: Federation) -> None:
    records = [federation.student(federation.alice, round=i) for i in range(2)]
    known = [federation.register(federation.alice, record) for record in records]
    asked = [keccak256(i.to_bytes(4, "big")) for i in range(1200)]
    asked[3], asked[1100] = known
    entries = reader(federation).entries(asked)
    assert [i for i, entry in enumerate(entries) if entry] == [3, 1100]
    assert entries[3] is not None
    assert (entries[3].node, entries[3].node_counted) == (address_of(federation.alice), True)
    assert reader(federation).entries([]) == []


def test_block_holds_its_transactions(federation: Federation) -> None:
    record = federation.student(federation.alice)
    written = federation.client(federation.stranger).register(
        record, federation.sign(federation.alice, record)
    )
    block = reader(federation).block(written.block)
    assert block is not None
    assert block.transactions == {written.transaction}
    assert block.timestamp == federation.now()
    assert reader(federation).block(written.block + 1) is None


@pytest.mark.parametrize("confirmations", [-1, 100_001])
def test_confirmations_out_of_range_are_refused(federation: Federation, confirmations: int) -> None:
    with pytest.raises(ConfigurationError, match="confirmations"):
        reader(federation, confirmations)


# ---------------------------------------------------------------------- other code


def test_deployed_code_is_exactly_the_expected_one(federation: Federation) -> None:
    code = federation.rpc.data("eth_getCode", federation.domain.contract, "latest")
    assert code == expected_code(federation.domain)
    assert reader(federation).fault_of_contract() is None


def test_address_without_code_is_no_registry(federation: Federation) -> None:
    empty = replace(federation, domain=Domain(federation.domain.chain_id, address_of(0xBAD)))
    assert "no contract" in str(reader(empty).fault_of_contract())
    with pytest.raises(CannotCheck, match="no registry"):
        reader(empty).look_up(federation.student(federation.alice), b"", ())


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_code_with_a_flipped_bit_is_not_ours(federation: Federation, place: int) -> None:
    code = bytearray(expected_code(federation.domain))
    code[place] ^= 1
    federation.rpc.ask("anvil_setCode", federation.domain.contract, "0x" + code.hex())
    assert "not this version" in str(reader(federation).fault_of_contract())


def test_longer_shorter_or_other_code_is_not_ours(federation: Federation) -> None:
    code = expected_code(federation.domain)
    for other in (code + b"\0", code[:-1], b"\x00", bytes(len(code))):
        federation.rpc.ask("anvil_setCode", federation.domain.contract, "0x" + other.hex())
        assert "not this version" in str(reader(federation).fault_of_contract())


@pytest.mark.parametrize("elsewhere", ["chain", "contract"])
def test_registry_that_claims_anothers_domain_is_told(
    federation: Federation, elsewhere: str
) -> None:
    # Such code would take signatures made for the other registry as its own.
    here = federation.domain
    domain = {
        "chain": Domain(here.chain_id + 1, here.contract),
        "contract": Domain(here.chain_id, address_of(0xBAD)),
    }[elsewhere]
    code = expected_code(domain)
    federation.rpc.ask("anvil_setCode", here.contract, "0x" + code.hex())
    assert "another chain or address" in str(reader(federation).fault_of_contract())


# ---------------------------------------------------------------------- lies


def word(index: int, value: bytes) -> Callable[[str], str]:
    """Replace a word of an answer."""

    def change(data: str) -> str:
        raw = bytearray.fromhex(data[2:])
        raw[index * WORD : (index + 1) * WORD] = value.rjust(WORD, b"\0")
        return "0x" + raw.hex()

    return change


CALL_LIES = {
    "empty": lambda data: "0x",
    "short": lambda data: data[:-64],
    "long": lambda data: data + "00" * 32,
    "odd": lambda data: data[:-1],
    "not hexadecimal": lambda data: data[:-2] + "zz",
    "null": lambda data: None,
    "a number": lambda data: 1,
    "all zero": lambda data: "0x" + "00" * ((len(data) - 2) // 2),
    "all ones": lambda data: "0x" + "ff" * ((len(data) - 2) // 2),
    "another record": word(0, b"\1" * 32),
    "identity out of range": word(2, b"\1" * 32),
    "recorded in the future": word(5, (2**47).to_bytes(6, "big")),
    "recorded at another time": word(8, b"\1"),
    "in order is no bool": word(9, b"\2"),
    "not in order, yet valid": word(9, b"\0"),
    "revoked, yet valid": word(11, b"\1"),
    "reason out of range": word(12, b"\1\0"),
    "in order, yet not valid": word(16, b"\0"),
}


def sensible_verdict(federation: Federation, url: str, record: StudentRecord) -> Verdict:
    """What a verifier believes of an endpoint."""
    verdict = reader(federation, url=url).look_up(record, b"", ()).latest
    require_sense(verdict, record, record.digest(federation.domain))
    return verdict


@pytest.mark.parametrize("lie", CALL_LIES.values(), ids=CALL_LIES)
def test_lying_verdict_is_never_in_order(
    federation: Federation, lie: Callable[[str], object]
) -> None:
    record = federation.student(federation.alice)
    federation.register(federation.alice, record)

    def tamper(method: str, params: list[Any], result: Any) -> Any:
        return lie(result) if method == "eth_call" else result

    with federation.lying(tamper) as url, pytest.raises(CannotCheck):
        sensible_verdict(federation, url, record)


def test_unrecorded_student_cannot_be_lied_into_order_without_a_contradiction(
    federation: Federation,
) -> None:
    record = federation.student(federation.alice)

    def tamper(method: str, params: list[Any], result: Any) -> Any:
        return word(16, b"\1")(word(9, b"\1")(result)) if method == "eth_call" else result

    with federation.lying(tamper) as url, pytest.raises(CannotCheck):
        sensible_verdict(federation, url, record)


BLOCK_LIES: dict[str, object] = {
    "null": None,
    "text": "0x1",
    "empty": {},
    "number as a number": {"number": 1},
    "short hash": {"hash": "0x12"},
    "no hash": {"hash": None},
    "time that is none": {"timestamp": "soon"},
    "another number": {"number": "0xfffff"},
    "transactions that are none": {"transactions": "0x"},
    "whole transactions": {"transactions": [{"hash": "0x" + "00" * 32}]},
    "short transaction": {"transactions": ["0x12"]},
}


@pytest.mark.parametrize("lie", BLOCK_LIES.values(), ids=BLOCK_LIES)
def test_lying_block_is_not_believed(federation: Federation, lie: object) -> None:
    def tamper(method: str, params: list[Any], result: Any) -> Any:
        if method != "eth_getBlockByNumber":
            return result
        return {**result, **lie} if isinstance(lie, dict) and lie else lie

    with federation.lying(tamper) as url:
        read = reader(federation, url=url)
        try:
            found = read.block(1)
        except CannotCheck:
            pass
        else:
            assert found is None  # "there is no such block": the verifier says so
            with pytest.raises(CannotCheck):
                read.look_up(federation.student(federation.alice), b"", ())


@pytest.mark.parametrize(
    "lie",
    ["0x", "0x" + "00" * 64, "0x" + "00" * 31 + "20" + "00" * 31 + "02" + "00" * 160, None],
    ids=["empty", "none", "of another length", "null"],
)
def test_lying_entries_are_not_believed(federation: Federation, lie: object) -> None:
    def tamper(method: str, params: list[Any], result: Any) -> Any:
        return lie if method == "eth_call" else result

    with federation.lying(tamper) as url, pytest.raises(CannotCheck):
        reader(federation, url=url).entries([ZERO_HASH])


LOG_LIES: dict[str, object] = {
    "none": [],
    "null": None,
    "two": [{}, {}],
    "no block": [{"transactionHash": "0x" + "00" * 32}],
    "another block": [{"blockNumber": "0xfffff", "transactionHash": "0x" + "00" * 32}],
}


@pytest.mark.parametrize("lie", LOG_LIES.values(), ids=LOG_LIES)
def test_lying_logs_are_not_believed(federation: Federation, lie: object) -> None:
    record = federation.student(federation.alice)
    record_id = federation.register(federation.alice, record)

    def tamper(method: str, params: list[Any], result: Any) -> Any:
        return lie if method == "eth_getLogs" else result

    client = federation.client(federation.alice)
    with federation.lying(tamper) as url:
        state = type(client.state)(url, federation.domain, confirmations=0)
        with pytest.raises(CannotCheck):
            state.registration(record_id)


def test_reading_loads_no_ethereum_library() -> None:
    script = (
        "import sys, contracts.chain_reader, contracts.registry\n"
        "heavy = {'web3', 'eth_account', 'eth_abi', 'eth_utils', 'aiohttp', 'requests', 'torch'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr

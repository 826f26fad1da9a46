"""Calls and transactions are encoded byte for byte as the established libraries encode them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from eth_abi import encode as reference_encode
from eth_account import Account as ReferenceAccount
from eth_utils.abi import function_abi_to_4byte_selector
from web3 import Web3

from contracts.abi import Words, encode, encode_call, encode_creation
from contracts.account import LocalSigner, Transaction
from contracts.artifact import artifact, error_name, event_topic, selector
from genkd.errors import CannotCheck
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.typed_data import keccak256

ADDRESS = address_of(0xA11CE)
STUDENT = [bytes([i]) * 32 for i in range(6)] + [ADDRESS, 7, 2**64 - 1]


@pytest.fixture(scope="module")
def reference() -> Any:
    return Web3().eth.contract(abi=artifact()["abi"], bytecode=artifact()["bytecode"])


def example(kind: str, size: int) -> Any:
    """A value of an ABI type."""
    values = {
        "bytes32": bytes(range(32)),
        "address": ADDRESS,
        "bytes": bytes(range(size)),
        "bytes32[]": [keccak256(bytes([i])) for i in range(size)],
    }
    return values[kind] if kind in values else 2 ** int(kind.removeprefix("uint")) - 1


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 65])
@pytest.mark.parametrize(
    "function", [one["name"] for one in artifact()["abi"] if one["type"] == "function"]
)
def test_every_call_is_encoded_as_web3_encodes_it(reference: Any, function: str, size: int) -> None:
    entry = next(one for one in artifact()["abi"] if one.get("name") == function)
    arguments = [
        STUDENT if one["type"] == "tuple" else example(one["type"], size) for one in entry["inputs"]
    ]
    expected = reference.encode_abi(function, args=[*arguments])
    assert "0x" + encode_call(function, *arguments).hex() == expected


def test_creation_code_ends_with_the_owner(reference: Any) -> None:
    expected = reference.constructor(ADDRESS).data_in_transaction
    assert "0x" + encode_creation(ADDRESS).hex() == expected


def test_mixed_static_and_dynamic_values_are_encoded_as_eth_abi_does() -> None:
    kinds = ["bytes", "(bytes32,address)", "bytes32[]", "uint8", "bytes"]
    values = [b"one", (bytes(32), ADDRESS), [bytes(32), bytes([1]) * 32], 255, b""]
    assert encode(kinds, values) == reference_encode(kinds, values)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("openRun", [bytes(31), ADDRESS, bytes(32)]),
        ("openRun", [bytes(32), "0x12", bytes(32)]),
        ("removeNode", [ADDRESS, 2**48]),
        ("removeNode", [ADDRESS, -1]),
        ("removeNode", [ADDRESS, True]),
        ("removeNode", [ADDRESS]),
        ("verify", [STUDENT, b"", [bytes(31)]]),
        ("verify", [STUDENT[:-1], b"", []]),
    ],
    ids=str,
)
def test_argument_that_does_not_fit_is_refused(function: str, arguments: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"fit|is not a|shorter|longer"):
        encode_call(function, *arguments)


def test_selectors_errors_and_topics_are_web3s(reference: Any) -> None:
    for entry in artifact()["abi"]:
        if entry["type"] == "function":
            one = reference.get_function_by_name(entry["name"])
            assert one.abi is not None
            assert selector(entry["name"]) == bytes(function_abi_to_4byte_selector(one.abi))
        elif entry["type"] == "event":
            topic = reference.events[entry["name"]]().topic.removeprefix("0x")
            assert event_topic(entry["name"]).hex() == topic
    assert error_name(keccak256(b"NotANode(address)")[:4] + bytes(32)) == "NotANode"
    assert error_name(b"") is None
    assert error_name(b"\0\0\0\0") is None


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("address", "01" + "00" * 31),
        ("bool", "00" * 31 + "02"),
        ("uint48", "00" * 25 + "01" + "00" * 6),
        ("uint8", "00" * 30 + "0100"),
    ],
)
def test_word_that_does_not_fit_its_type_is_not_believed(kind: str, word: str) -> None:
    with pytest.raises(CannotCheck):
        Words(bytes.fromhex(word), 1).take(kind)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_answer_of_another_length_is_not_believed(length: int) -> None:
    with pytest.raises(CannotCheck):
        Words(bytes(length), 1)


@pytest.mark.parametrize("seed", range(5))
def test_transaction_is_signed_as_eth_account_signs_it(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    secret = chance.getrandbits(255) + 1
    mine = Transaction(
        chain_id=chance.choice([1, 127, 128, 31337, 2**53 - 1]),
        nonce=chance.choice([0, 1, 127, 128, 2**32]),
        max_priority_fee=chance.choice([0, 1, 10**9]),
        max_fee=chance.randrange(1, 10**12),
        gas=chance.randrange(21_000, 10**7),
        to=chance.choice([None, ADDRESS]),
        data=chance.randbytes(chance.choice([0, 1, 54, 55, 56, 300, 70_000])),
    )
    signer = LocalSigner(secret)
    expected = ReferenceAccount.from_key(secret.to_bytes(32, "big")).sign_transaction(
        {
            "type": 2,
            "chainId": mine.chain_id,
            "nonce": mine.nonce,
            "maxPriorityFeePerGas": mine.max_priority_fee,
            "maxFeePerGas": mine.max_fee,
            "gas": mine.gas,
            "value": 0,
            "data": mine.data,
            **({} if mine.to is None else {"to": mine.to}),
        }
    )
    raw = mine.signed(signer.sign_digest(mine.digest()))
    assert ReferenceAccount.recover_transaction(raw) == signer.address
    assert raw == bytes(expected.raw_transaction)

"""The EIP-712 encoding, against the reference library of Ethereum's Python world."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from genkd.errors import InputFileRefused
from genkd.provenance.record import (
    Acknowledgement,
    ProfileMessage,
    Revocation,
    Rotation,
    StudentRecord,
    TeacherMessage,
    TypedMessage,
    key_hash,
    parents_root,
)
from genkd.provenance.typed_data import (
    Domain,
    encode_word,
    keccak256,
    members,
    parse_address,
    parse_bytes32,
    to_address,
)

DOMAIN = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
MESSAGES = [StudentRecord, TeacherMessage, Revocation, Rotation, Acknowledgement, ProfileMessage]
VALUES = {
    "bytes32": st.binary(min_size=32, max_size=32),
    "address": st.binary(min_size=20, max_size=20).map(to_address),
    "uint8": st.integers(0, 2**8 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**53 - 1),
}


@st.composite
def messages(draw: Any) -> TypedMessage:
    kind = draw(st.sampled_from(MESSAGES))
    return kind(*(draw(VALUES[solidity]) for solidity, _ in members(kind.TYPE)))


def reference_digest(message: TypedMessage, domain: dict[str, object]) -> bytes:
    name = message.TYPE.partition("(")[0]
    types = {
        name: [{"type": kind, "name": member} for kind, member in members(message.TYPE)],
    }
    return _hash_eip191_message(encode_typed_data(domain, types, message.to_json()))


@given(messages())
def test_digests_agree_with_the_reference_library(message: TypedMessage) -> None:
    domain = {
        "name": "GenKD",
        "version": "1",
        "chainId": DOMAIN.chain_id,
        "verifyingContract": DOMAIN.contract,
    }
    assert message.digest(DOMAIN) == reference_digest(message, domain)


def test_profile_hash_agrees_with_the_reference_library() -> None:
    profile = ProfileMessage(DOMAIN.contract, b"\x01" * 32, b"\x02" * 32, b"\x03" * 32)
    expected = reference_digest(profile, {"name": "GenKD", "version": "1"})
    assert profile.profile_hash() == expected


@given(messages())
def test_messages_survive_json(message: TypedMessage) -> None:
    assert type(message).from_json(message.to_json()) == message


@pytest.mark.parametrize("kind", MESSAGES)
def test_fields_follow_the_solidity_members(kind: type[TypedMessage]) -> None:
    names = ["".join(p.capitalize() for p in f.name.split("_")) for f in fields(kind)]  # type: ignore[arg-type]
    assert [name[0].upper() + name[1:] for _, name in members(kind.TYPE)] == names


MALFORMED = {
    "no object": None,
    "a list": [],
    "a member missing": {"commitment": "0x" + "1" * 64, "node": DOMAIN.contract},
    "a member more": {
        "commitment": "0x" + "1" * 64,
        "node": DOMAIN.contract,
        "deadline": 1,
        "x": 1,
    },
    "short hash": {"commitment": "0x11", "node": DOMAIN.contract, "deadline": 1},
    "upper-case hash": {"commitment": "0x" + "A" * 64, "node": DOMAIN.contract, "deadline": 1},
    "hash as number": {"commitment": 1, "node": DOMAIN.contract, "deadline": 1},
    "lower-case address": {
        "commitment": "0x" + "1" * 64,
        "node": DOMAIN.contract.lower(),
        "deadline": 1,
    },
    "text deadline": {"commitment": "0x" + "1" * 64, "node": DOMAIN.contract, "deadline": "1"},
    "true deadline": {"commitment": "0x" + "1" * 64, "node": DOMAIN.contract, "deadline": True},
    "negative deadline": {"commitment": "0x" + "1" * 64, "node": DOMAIN.contract, "deadline": -1},
    "huge deadline": {"commitment": "0x" + "1" * 64, "node": DOMAIN.contract, "deadline": 2**53},
    "float deadline": {"commitment": "0x" + "1" * 64, "node": DOMAIN.contract, "deadline": 1.0},
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_is_refused(value: object) -> None:
    with pytest.raises(InputFileRefused):
        TeacherMessage.from_json(value)


def test_another_domain_gives_another_digest() -> None:
    message = TeacherMessage(b"\x01" * 32, DOMAIN.contract, 1)
    others = [Domain(1, DOMAIN.contract), Domain(31337, "0x" + "12" * 20)]
    assert len({message.digest(one) for one in [DOMAIN, *others]}) == 3


# EIP-55's own examples.
CHECKSUMMED = [
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]


@pytest.mark.parametrize("address", CHECKSUMMED)
def test_addresses_carry_the_checksum_of_eip_55(address: str) -> None:
    assert parse_address(address.lower()) == address
    assert parse_address("0x" + address[2:].upper()) == address
    assert parse_address(address) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "0x", "0x12", "12" * 20, "0x" + "g" * 40, "0x" + "1" * 41, "0x" + "1" * 40 + "\n"),
        *("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD", 5, None),
    ],
)
def test_what_is_no_address_is_refused(text: object) -> None:
    with pytest.raises(InputFileRefused):
        parse_address(text)


@pytest.mark.parametrize("chain_id", [0, -1, 2**53, True])
def test_a_chain_id_out_of_range_is_refused(chain_id: int) -> None:
    with pytest.raises(InputFileRefused):
        Domain(chain_id, DOMAIN.contract)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("bytes32", b"short"), ("bytes32", "0x" + "1" * 64), ("address", "0x12")),
        *(("address", b"\0" * 20), ("uint8", 256), ("uint8", -1), ("uint8", True), ("uint64", 1.5)),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_refused(kind: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"fit|is not a"):
        encode_word(kind, value)


def test_an_unknown_solidity_type_is_refused() -> None:
    with pytest.raises(ValueError, match="not a member"):
        members("Thing(string name)")


def test_keccak_is_ethereums() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(b"").hex() == empty


def test_parents_root_depends_on_the_set_alone() -> None:
    a, b = b"\x01" * 32, b"\x02" * 32
    assert parents_root([]) == bytes(32)
    assert parents_root([a, b]) == parents_root([b, a]) == keccak256(a + b)
    for bad in ([a, a], [b"short"]):
        with pytest.raises(ValueError, match="distinct"):
            parents_root(bad)


def test_key_hash_is_the_contracts() -> None:
    assert key_hash(DOMAIN.contract) == keccak256(encode_word("address", DOMAIN.contract))


def test_parse_bytes32_refuses_other_lengths() -> None:
    with pytest.raises(InputFileRefused):
        parse_bytes32("0x" + "0" * 63)

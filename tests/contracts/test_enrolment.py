"""What a node and a coordinator say to each other: strict, bounded, signed for one federation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.enrolment import (
    MAX_REQUEST_BYTES,
    FederationCard,
    JoinAnswer,
    JoinRequest,
    supernode_key_pem,
)
from genkd.canonical import canonical_json
from genkd.errors import InputFileRefused, KeyOrSignatureError
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import make_profile
from genkd.provenance.typed_data import Domain

AUTHORITY = bytes([7]) * 32
CARD = FederationCard(
    coordinator="0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF",
    chain_id=31337,
    registry="0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf",
    rpc_url="http://chain.example:8545",
    confirmations="finalized",
    app_sha256="ab" * 32,
    runs=("spring", "0x" + "12" * 32),
)


def keys_of(secret: int) -> NodeKeys:
    signing = ec.generate_private_key(ec.SECP256R1())
    return NodeKeys(secret, signing, make_profile(secret, signing, bytes(32), bytes([1]) * 32))


def public(key: Any, encoding: Encoding = Encoding.PEM) -> bytes:
    kind = PublicFormat.OpenSSH if encoding is Encoding.OpenSSH else None
    return key.public_key().public_bytes(encoding, kind or PublicFormat.SubjectPublicKeyInfo)


ALICE, MALLORY = keys_of(0xA11CE), keys_of(0xBAD)
SUPERNODE = ec.generate_private_key(ec.SECP384R1())
REQUEST = JoinRequest.make(ALICE, public(SUPERNODE), CARD.domain, AUTHORITY)


@pytest.mark.parametrize(
    "document",
    [
        *(CARD, replace(CARD, rpc_url=None, confirmations=12, runs=())),
        *(REQUEST, JoinAnswer("pending"), JoinAnswer("refused", "removed")),
    ],
    ids=lambda document: type(document).__name__,
)
def test_what_is_written_is_read_back(document: Any) -> None:
    assert type(document).from_bytes(document.to_bytes()) == document


def changed(document: Any, **members: object) -> bytes:
    value = json.loads(document.to_bytes()) | members
    return canonical_json({k: v for k, v in value.items() if v is not ...})


CARDS = {
    "another protocol": {"protocol": 2},
    "a protocol that is true": {"protocol": True},
    "a missing member": {"runs": ...},
    "an unknown member": {"owner": "me"},
    "no address": {"coordinator": "0x12"},
    "an address without its checksum": {"coordinator": CARD.coordinator.lower()},
    "no chain": {"chainId": 0},
    "a chain that is text": {"chainId": "1"},
    "an endpoint with a control character": {"rpcUrl": "http://x\u001b[2J"},
    "a long endpoint": {"rpcUrl": "http://" + "x" * 3000},
    "an endpoint that is a number": {"rpcUrl": 1},
    "negative confirmations": {"confirmations": -1},
    "unknown confirmations": {"confirmations": "latest"},
    "no hash": {"appSha256": "AB" * 32},
    "runs that are text": {"runs": "spring"},
    "a run that is a number": {"runs": [1]},
    "an empty run": {"runs": [""]},
    "too many runs": {"runs": [str(n) for n in range(1000)]},
}


@pytest.mark.parametrize("members", CARDS.values(), ids=CARDS)
def test_a_malformed_card_is_refused(members: dict[str, object]) -> None:
    with pytest.raises(InputFileRefused):
        FederationCard.from_bytes(changed(CARD, **members))


REQUESTS = {
    "another protocol": {"protocol": 2},
    "a missing member": {"signature": ...},
    "an unknown member": {"node": ALICE.address},
    "no profile": {"profile": None},
    "a profile with an unknown member": {"profile": ALICE.profile.to_json() | {"x": 1}},
    "no key": {"supernodeKey": ""},
    "a key in another spelling": {"supernodeKey": public(SUPERNODE, Encoding.OpenSSH).decode()},
    "a key and another": {"supernodeKey": 2 * public(SUPERNODE).decode()},
    "a key beyond ASCII": {"supernodeKey": public(SUPERNODE).decode() + "\u00e4"},
    "a key that is a number": {"supernodeKey": 3},
    "no signature": {"signature": ""},
    "a long signature": {"signature": "0x" + "00" * 1000},
}


@pytest.mark.parametrize("members", REQUESTS.values(), ids=REQUESTS)
def test_a_malformed_request_is_refused(members: dict[str, object]) -> None:
    with pytest.raises(InputFileRefused):
        JoinRequest.from_bytes(changed(REQUEST, **members))


BYTES = {
    "nothing": b"",
    "no JSON": b"<html>",
    "a list": b"[]",
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 200_000,
    "huge": b" " * 10_000_000 + b"{}",
    "not canonical": json.dumps(json.loads(REQUEST.to_bytes()), indent=1).encode(),
    "a key twice": REQUEST.to_bytes().replace(b'{"profile"', b'{"protocol":1,"profile"', 1),
    "a number beyond": b'{"protocol":1e999}',
    "a lone surrogate": b'{"protocol":1,"state":"pending","reason":"\\ud800"}',
}


@pytest.mark.parametrize("kind", [FederationCard, JoinRequest, JoinAnswer])
@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
def test_bytes_that_are_no_document_are_refused(kind: Any, data: bytes) -> None:
    with pytest.raises(InputFileRefused):
        kind.from_bytes(data)


@pytest.mark.parametrize(
    "members",
    [{"state": "expected"}, {"state": []}, {"reason": 1}, {"reason": "\n"}, {"reason": "x" * 999}],
    ids=str,
)
def test_a_malformed_answer_is_refused(members: dict[str, object]) -> None:
    with pytest.raises(InputFileRefused):
        JoinAnswer.from_bytes(changed(JoinAnswer("pending"), **members))


def test_the_nodes_own_request_is_genuine() -> None:
    JoinRequest.from_bytes(REQUEST.to_bytes()).check(CARD.domain, AUTHORITY)
    assert len(REQUEST.to_bytes()) < MAX_REQUEST_BYTES // 4


def mallory_with_alices_profile() -> JoinRequest:
    """Mallory signs that his SuperNode speaks for Alice."""
    his = JoinRequest.make(MALLORY, public(ec.generate_private_key(ec.SECP384R1())), *HERE)
    return replace(his, profile=ALICE.profile)


def alices_request_with_mallorys_supernode() -> JoinRequest:
    key = supernode_key_pem(public(ec.generate_private_key(ec.SECP384R1())))
    return replace(REQUEST, supernode_key=key)


def signed_for_another_registry() -> JoinRequest:
    return JoinRequest.make(ALICE, public(SUPERNODE), Domain(1, CARD.registry), AUTHORITY)


def signed_under_another_authority() -> JoinRequest:
    """What somebody between node and coordinator gets, who showed the node his own certificate."""
    return JoinRequest.make(ALICE, public(SUPERNODE), CARD.domain, bytes(32))


def with_another_next_key() -> JoinRequest:
    message = replace(ALICE.profile.message, next_key_hash=bytes([9]) * 32)
    return replace(REQUEST, profile=replace(ALICE.profile, message=message))


def with_mallorys_signing_key() -> JoinRequest:
    profile = replace(ALICE.profile, signing_key=MALLORY.profile.signing_key)
    return replace(REQUEST, profile=profile)


HERE = (CARD.domain, AUTHORITY)
FORGED = [
    *(mallory_with_alices_profile, alices_request_with_mallorys_supernode),
    *(signed_for_another_registry, signed_under_another_authority),
    *(with_another_next_key, with_mallorys_signing_key),
]


@pytest.mark.parametrize("make", FORGED, ids=lambda make: make.__name__)
def test_a_request_that_the_node_did_not_make_for_this_federation_is_refused(
    make: Callable[[], JoinRequest],
) -> None:
    forged = make()
    with pytest.raises(KeyOrSignatureError):
        forged.check(*HERE)


def test_a_supernode_key_has_one_spelling() -> None:
    pem = public(SUPERNODE).decode()
    openssh = public(SUPERNODE, Encoding.OpenSSH)
    assert {supernode_key_pem(text) for text in (pem, openssh, openssh + b" me@here\n")} == {pem}


OTHER_KEYS: dict[str, Any] = {
    "RSA": rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "Ethereum's curve": ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("key", OTHER_KEYS.values(), ids=OTHER_KEYS)
def test_a_key_that_flower_does_not_take_is_refused(key: Any) -> None:
    with pytest.raises(InputFileRefused):
        supernode_key_pem(public(key))


@pytest.mark.parametrize(
    "text", ["", "ssh-rsa", "-----BEGIN", "ecdsa-sha2-nistp384 AAAA", "\ud800", "x" * 100_000]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InputFileRefused):
        supernode_key_pem(text)

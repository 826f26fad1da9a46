"""Ethereum signatures, against the reference library."""

from __future__ import annotations

import pytest
from eth_keys import keys as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from genkd.errors import KeyOrSignatureError
from genkd.provenance.secp256k1 import N, P, address_of, recover_address, sign_digest

SECRETS = st.integers(1, N - 1)
DIGESTS = st.binary(min_size=32, max_size=32)


@settings(max_examples=25, deadline=None)
@given(SECRETS, DIGESTS)
def test_signatures_are_the_reference_librarys(secret: int, digest: bytes) -> None:
    signature = sign_digest(secret, digest)
    key = reference.PrivateKey(secret.to_bytes(32, "big"))
    expected = key.sign_msg_hash(digest).to_bytes()
    assert signature == expected[:64] + bytes([27 + expected[64]])
    assert recover_address(digest, signature) == address_of(secret)
    assert address_of(secret) == key.public_key.to_checksum_address()


@settings(max_examples=25, deadline=None)
@given(DIGESTS, st.integers(1, N - 1), st.integers(1, N // 2), st.integers(0, 1))
def test_any_signature_recovers_as_the_reference_library_recovers_it(
    digest: bytes, r: int, s: int, parity: int
) -> None:
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    try:
        found = reference.Signature(signature + bytes([parity]))
        expected = found.recover_public_key_from_msg_hash(digest).to_checksum_address()
    except Exception:
        with pytest.raises(KeyOrSignatureError):
            recover_address(digest, signature + bytes([27 + parity]))
    else:
        assert recover_address(digest, signature + bytes([27 + parity])) == expected


DIGEST = b"\x11" * 32
GOOD = sign_digest(0xA11CE, DIGEST)


def twin(signature: bytes) -> bytes:
    s = N - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


MALFORMED = {
    "empty": b"",
    "64 bytes": GOOD[:64],
    "66 bytes": GOOD + b"\0",
    "v is 0": GOOD[:64] + b"\0",
    "v is 29": GOOD[:64] + b"\x1d",
    "r is zero": bytes(32) + GOOD[32:],
    "s is zero": GOOD[:32] + bytes(32) + GOOD[64:],
    "r is the order": N.to_bytes(32, "big") + GOOD[32:],
    "r is the field": P.to_bytes(32, "big") + GOOD[32:],
    "s is the order": GOOD[:32] + N.to_bytes(32, "big") + GOOD[64:],
    "high s": twin(GOOD),
    "r on no point": (5).to_bytes(32, "big") + GOOD[32:],
}


@pytest.mark.parametrize("signature", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(KeyOrSignatureError, match="malformed"):
        recover_address(DIGEST, signature)


def test_a_signature_that_recovers_to_infinity_is_refused() -> None:
    """With R = G, s = z: s R - z G is the point at infinity, which is nobody's key."""
    gx = 0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798
    signature = gx.to_bytes(32, "big") + (1).to_bytes(32, "big") + b"\x1b"
    with pytest.raises(KeyOrSignatureError, match="no point"):
        recover_address((1).to_bytes(32, "big"), signature)


@pytest.mark.parametrize("secret", [0, -1, N, N + 1])
def test_a_number_that_is_no_private_key_is_refused(secret: int) -> None:
    with pytest.raises(KeyOrSignatureError):
        address_of(secret)
    with pytest.raises(KeyOrSignatureError):
        sign_digest(secret, DIGEST)


def test_only_32_byte_digests_are_signed_and_recovered() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        sign_digest(1, b"short")
    with pytest.raises(ValueError, match="32 bytes"):
        recover_address(b"short", GOOD)

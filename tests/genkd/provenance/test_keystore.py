"""Private keys at rest: read by other programs, and no file can make this one work for hours."""

from __future__ import annotations

import base64
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from eth_account import Account

from genkd.errors import KeyOrSignatureError
from genkd.provenance import keystore, signing_key
from genkd.provenance.keystore import decrypt_ethereum_key, encrypt_ethereum_key
from genkd.provenance.passphrase import Passphrase
from genkd.provenance.signing_key import decrypt_signing_key, encrypt_signing_key

PASSPHRASE = Passphrase("correct horse battery")
SECRET = 0xA11CE
P256 = ec.derive_private_key(7, ec.SECP256R1())


@pytest.fixture
def keystore_json(cheap_scrypt: None) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(encrypt_ethereum_key(SECRET, PASSPHRASE))
    return value


def test_the_cost_is_geths_standard_one() -> None:
    """Written once at full cost; every other test of this file is cheaper."""
    value = json.loads(encrypt_ethereum_key(SECRET, PASSPHRASE))
    assert value["crypto"]["kdfparams"]["n"] == 262_144
    assert decrypt_ethereum_key(json.dumps(value).encode(), PASSPHRASE) == SECRET


def test_another_program_opens_our_keystore(keystore_json: dict[str, Any]) -> None:
    assert int.from_bytes(Account.decrypt(keystore_json, PASSPHRASE.reveal().decode())) == SECRET


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_we_open_another_programs_keystore(kdf: Any, cheap_scrypt: None) -> None:
    text = PASSPHRASE.reveal().decode()
    value = Account.encrypt(SECRET.to_bytes(32, "big"), text, kdf=kdf, iterations=4096)
    assert decrypt_ethereum_key(json.dumps(value).encode(), PASSPHRASE) == SECRET


def test_the_same_key_is_never_encrypted_alike(cheap_scrypt: None) -> None:
    assert encrypt_ethereum_key(SECRET, PASSPHRASE) != encrypt_ethereum_key(SECRET, PASSPHRASE)
    assert encrypt_signing_key(P256, PASSPHRASE) != encrypt_signing_key(P256, PASSPHRASE)


def test_a_wrong_passphrase_is_said(cheap_scrypt: None) -> None:
    wrong = Passphrase("incorrect horse")
    with pytest.raises(KeyOrSignatureError, match="passphrase does not open"):
        decrypt_ethereum_key(encrypt_ethereum_key(SECRET, PASSPHRASE), wrong)
    with pytest.raises(KeyOrSignatureError, match="passphrase does not open"):
        decrypt_signing_key(encrypt_signing_key(P256, PASSPHRASE), wrong)


def put(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(keystore: dict[str, Any]) -> None:
        for name in path[:-1]:
            keystore = keystore[name]
        keystore[path[-1]] = value

    return change


PARAMETERS = ("crypto", "kdfparams")
PBKDF2 = {"c": 1000, "dklen": 32, "prf": "hmac-sha256", "salt": "00" * 32}
BOMBS = {
    "scrypt n of 2^24": put(*PARAMETERS, "n", value=2**24),
    "scrypt n of 2^62": put(*PARAMETERS, "n", value=2**62),
    "scrypt r of a million": put(*PARAMETERS, "r", value=10**6),
    "scrypt p of a million": put(*PARAMETERS, "p", value=10**6),
    "pbkdf2 of a billion rounds": lambda k: k["crypto"].update(
        kdf="pbkdf2", kdfparams=PBKDF2 | {"c": 10**9}
    ),
}
MALFORMED = {
    "no version": lambda k: k.pop("version"),
    "version 4": put("version", value=4),
    "no crypto": lambda k: k.pop("crypto"),
    "crypto is a list": put("crypto", value=[]),
    "no kdfparams": lambda k: k["crypto"].pop("kdfparams"),
    "unknown kdf": put("crypto", "kdf", value="argon2id"),
    "unknown cipher": put("crypto", "cipher", value="aes-256-gcm"),
    "short iv": put("crypto", "cipherparams", "iv", value="00"),
    "iv is no hex": put("crypto", "cipherparams", "iv", value="zz" * 16),
    "long ciphertext": put("crypto", "ciphertext", value="00" * 64),
    "ciphertext is a number": put("crypto", "ciphertext", value=5),
    "dklen of a gigabyte": put(*PARAMETERS, "dklen", value=2**30),
    "n is no power of two": put(*PARAMETERS, "n", value=1000),
    "n is 1": put(*PARAMETERS, "n", value=1),
    "n is negative": put(*PARAMETERS, "n", value=-(2**10)),
    "n is text": put(*PARAMETERS, "n", value="262144"),
    "n is true": put(*PARAMETERS, "n", value=True),
    "r is zero": put(*PARAMETERS, "r", value=0),
    "salt is empty": put(*PARAMETERS, "salt", value=""),
    "pbkdf2 of another hash": lambda k: k["crypto"].update(
        kdf="pbkdf2", kdfparams=PBKDF2 | {"prf": "hmac-md5"}
    ),
}


@pytest.mark.parametrize("change", BOMBS.values(), ids=BOMBS)
def test_a_keystore_bomb_is_refused_at_once(
    change: Callable[[dict[str, Any]], None], keystore_json: dict[str, Any]
) -> None:
    change(keystore_json)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(KeyOrSignatureError, match="more work"):
        decrypt_ethereum_key(json.dumps(keystore_json).encode(), PASSPHRASE)
    assert time.process_time() - start < 1  # derived, the least of these takes several seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_keystore_is_refused(
    change: Callable[[dict[str, Any]], object], keystore_json: dict[str, Any]
) -> None:
    change(keystore_json)
    with pytest.raises(KeyOrSignatureError, match="not usable"):
        decrypt_ethereum_key(json.dumps(keystore_json).encode(), PASSPHRASE)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"version":3,"version":3}', b"[" * 10_000, b" " * 2**20, b"\xff"],
    ids=["empty", "cut", "list", "null", "twice", "deep", "large", "bytes"],
)
def test_what_is_no_keystore_is_refused(data: bytes) -> None:
    with pytest.raises(KeyOrSignatureError, match="not usable"):
        decrypt_ethereum_key(data, PASSPHRASE)


def test_a_damaged_ciphertext_is_refused(keystore_json: dict[str, Any]) -> None:
    put("crypto", "ciphertext", value="00" * 32)(keystore_json)
    with pytest.raises(KeyOrSignatureError, match="does not open"):
        decrypt_ethereum_key(json.dumps(keystore_json).encode(), PASSPHRASE)


# --- the P-256 key ---


def test_the_signing_key_is_standard_pkcs8() -> None:
    """At full cost, and read by `cryptography`, which the stock tools use."""
    data = encrypt_signing_key(P256, PASSPHRASE)
    key = serialization.load_pem_private_key(data, PASSPHRASE.reveal())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.private_numbers() == P256.private_numbers()
    assert (262_144).to_bytes(3, "big") in base64.b64decode(b"".join(data.splitlines()[1:-1]))


def test_the_signing_key_survives(cheap_scrypt: None) -> None:
    data = encrypt_signing_key(P256, PASSPHRASE)
    assert decrypt_signing_key(data, PASSPHRASE).private_numbers() == P256.private_numbers()


def test_a_signing_key_bomb_is_refused_at_once(
    cheap_scrypt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keystore, "SCRYPT_N", 2**13)
    data = encrypt_signing_key(P256, PASSPHRASE)
    monkeypatch.setattr(keystore, "SCRYPT_N", 2**12)
    with pytest.raises(KeyOrSignatureError, match="more work"):
        decrypt_signing_key(data, PASSPHRASE)


def _pem(der: bytes) -> bytes:
    return b"\n".join([signing_key.BEGIN, base64.b64encode(der), signing_key.END, b""])


def _plain(key: Any, encryption: Any) -> bytes:
    data: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    return data


NOT_SIGNING_KEYS = {
    "empty": b"",
    "text": b"hello",
    "not encrypted": _plain(P256, serialization.NoEncryption()),
    "encrypted by others": _plain(P256, serialization.BestAvailableEncryption(b"x" * 20)),
    "no der": _pem(b"hello"),
    "nothing inside": _pem(b"\x30\x00"),
    "a length beyond the end": _pem(b"\x30\x84\x7f\xff\xff\xff"),
    "a length of lengths": _pem(b"\x30\xff" + b"\xff" * 130),
    "half a base64": signing_key.BEGIN + b"\nA\n" + signing_key.END + b"\n",
    "large": _pem(bytes(2**16)),
}


@pytest.mark.parametrize("data", NOT_SIGNING_KEYS.values(), ids=NOT_SIGNING_KEYS)
def test_what_is_no_signing_key_is_refused(data: bytes, cheap_scrypt: None) -> None:
    with pytest.raises(KeyOrSignatureError, match="not usable"):
        decrypt_signing_key(data, PASSPHRASE)


@pytest.mark.parametrize(
    "key", [ec.derive_private_key(7, ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_a_key_of_another_curve_is_refused(key: Any, cheap_scrypt: None) -> None:
    with pytest.raises(KeyOrSignatureError, match="no P-256 key"):
        decrypt_signing_key(encrypt_signing_key(key, PASSPHRASE), PASSPHRASE)


@pytest.mark.parametrize("position", range(40, 400, 40))
def test_a_damaged_signing_key_is_refused(position: int, cheap_scrypt: None) -> None:
    data = bytearray(encrypt_signing_key(P256, PASSPHRASE))
    data[position] = ord("B") if data[position] != ord("B") else ord("C")
    with pytest.raises(KeyOrSignatureError):
        decrypt_signing_key(bytes(data), PASSPHRASE)

"""An Ethereum private key at rest: the keystore of version 3 that wallets and clients write.

    data = encrypt_ethereum_key(secret, passphrase)
    decrypt_ethereum_key(data, passphrase) == secret

The cost is geth's standard one (scrypt, N = 2^18: 256 MiB and most of a second). A file states its
own cost, so a hostile one could ask for hours and all memory: the bounds are checked before
anything is derived.
"""

from __future__ import annotations

import hmac
import re
import secrets
import uuid

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from genkd.canonical import canonical_json, parse_json
from genkd.errors import KeyOrSignatureError
from genkd.provenance.passphrase import Passphrase
from genkd.provenance.secp256k1 import address_of
from genkd.provenance.typed_data import keccak256

SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**18, 8, 1
MAX_SCRYPT_WORK = 2**18 * 8  # n * r * p; 128 bytes of memory each
MAX_PBKDF2_COUNT = 4_000_000
MAX_KEY_FILE_BYTES = 16 * 1024
HEX = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2}){1,64})")

DAMAGED_HINT = "restore the key file from a backup, or make new keys with 'genkd-node init'"


def encrypt_ethereum_key(secret: int, passphrase: Passphrase) -> bytes:
    """A private key as keystore version 3 (the format of geth and of wallets), JSON bytes."""
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    key = Scrypt(salt, 32, SCRYPT_N, SCRYPT_R, SCRYPT_P).derive(passphrase.reveal())
    encryptor = Cipher(algorithms.AES(key[:16]), modes.CTR(iv)).encryptor()
    ciphertext = encryptor.update(secret.to_bytes(32, "big")) + encryptor.finalize()
    return canonical_json(
        {
            "version": 3,
            "id": str(uuid.uuid4()),
            "address": address_of(secret)[2:].lower(),
            "crypto": {
                "cipher": "aes-128-ctr",
                "cipherparams": {"iv": iv.hex()},
                "ciphertext": ciphertext.hex(),
                "kdf": "scrypt",
                "kdfparams": {
                    "n": SCRYPT_N,
                    "r": SCRYPT_R,
                    "p": SCRYPT_P,
                    "dklen": 32,
                    "salt": salt.hex(),
                },
                "mac": keccak256(key[16:32] + ciphertext).hex(),
            },
        }
    )


def decrypt_ethereum_key(data: bytes, passphrase: Passphrase) -> int:
    """The private key in a keystore of version 3, made by this or another program.

    Args:
        data: The file's bytes.
        passphrase: What it was encrypted with.

    Raises:
        KeyOrSignatureError: If it is no such keystore, asks for too much work, or the passphrase
            is wrong (the format cannot tell a wrong passphrase from a damaged file).
    """
    crypto = _crypto_of(data)
    ciphertext = _hex(crypto, "ciphertext")
    mac = _hex(crypto, "mac")
    iv = _hex(_object(crypto, "cipherparams"), "iv")
    if crypto.get("cipher") != "aes-128-ctr" or (len(iv), len(ciphertext)) != (16, 32):
        raise unusable("its cipher is not the one of version 3")
    key = _derive(crypto, passphrase)
    if not hmac.compare_digest(keccak256(key[16:32] + ciphertext), mac):
        raise wrong_passphrase()
    decryptor = Cipher(algorithms.AES(key[:16]), modes.CTR(iv)).decryptor()
    secret = int.from_bytes(decryptor.update(ciphertext) + decryptor.finalize(), "big")
    address_of(secret)  # refuses a number that is no private key
    return secret


def _crypto_of(data: bytes) -> dict[str, object]:
    if len(data) > MAX_KEY_FILE_BYTES:
        raise unusable("it is too large")
    try:
        value = parse_json(data)
    except ValueError as error:
        raise unusable(str(error)) from error
    if not isinstance(value, dict) or value.get("version") != 3:
        raise unusable("it is not of version 3")
    # Some wallets write "Crypto".
    return _object(value, "crypto" if "crypto" in value else "Crypto")


def _derive(crypto: dict[str, object], passphrase: Passphrase) -> bytes:
    """The 32-byte key, after bounding the work the file asks for."""
    parameters = _object(crypto, "kdfparams")
    salt = _hex(parameters, "salt")
    if _number(parameters, "dklen") != 32:
        raise unusable("its derived key has not 32 bytes")
    if crypto.get("kdf") == "scrypt":
        n, r, p = (_number(parameters, name) for name in ("n", "r", "p"))
        require_bounded_scrypt(n, r, p)
        return Scrypt(salt, 32, n, r, p).derive(passphrase.reveal())
    if crypto.get("kdf") == "pbkdf2" and parameters.get("prf") == "hmac-sha256":
        count = _number(parameters, "c")
        if not 1 <= count <= MAX_PBKDF2_COUNT:
            raise asks_too_much()
        return PBKDF2HMAC(hashes.SHA256(), 32, salt, count).derive(passphrase.reveal())
    raise unusable("its key derivation is unknown")


def require_bounded_scrypt(n: int, r: int, p: int) -> None:
    """Refuse scrypt parameters that are malformed or dearer than the ones this project writes.

    Raises:
        KeyOrSignatureError: Before anything was derived.
    """
    if n < 2 or n & (n - 1) or r < 1 or p < 1:
        raise unusable("its scrypt parameters are malformed")
    if n > SCRYPT_N or n * r * p > MAX_SCRYPT_WORK:
        raise asks_too_much()


def _object(parent: dict[str, object], name: str) -> dict[str, object]:
    value = parent.get(name)
    if not isinstance(value, dict):
        raise unusable(f"it has no {name}")
    return value


def _hex(parent: dict[str, object], name: str) -> bytes:
    value = parent.get(name)
    match = HEX.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise unusable(f"its {name} is not hexadecimal")
    return bytes.fromhex(match[1])


def _number(parent: dict[str, object], name: str) -> int:
    value = parent.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise unusable(f"its {name} is not a number")
    return value


def unusable(reason: str) -> KeyOrSignatureError:
    """The error for a key file that is not what it should be."""
    return KeyOrSignatureError(f"the key file is not usable: {reason}", hint=DAMAGED_HINT)


def asks_too_much() -> KeyOrSignatureError:
    """The error for a key file whose stated cost is a trap."""
    return KeyOrSignatureError(
        "the key file asks for more work than any honest one (it would take all memory or hours)",
        hint="it was altered; restore it from a backup",
    )


def wrong_passphrase() -> KeyOrSignatureError:
    """The error for a passphrase that does not open a key file."""
    return KeyOrSignatureError(
        "the passphrase does not open the key file",
        hint="check the passphrase; if it is right, the file is damaged: restore it from a backup",
    )

"""The P-256 private key at rest: encrypted PKCS #8, as dear to attack as the keystore beside it.

    data = encrypt_signing_key(key, passphrase)
    decrypt_signing_key(data, passphrase)

`cryptography` reads PKCS #8 under scrypt (PBES2, RFC 8018 and RFC 7914 section 7) but writes only
PBKDF2 with 2,048 rounds, a thousandth of the keystore's cost. Both files are under one passphrase,
so the cheaper one would decide what it takes to guess it.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets

from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from genkd.provenance import keystore
from genkd.provenance.passphrase import Passphrase

# DER: tags, and the complete encodings of the three object identifiers.
SEQUENCE, INTEGER, OCTETS = 0x30, 0x02, 0x04
OID_PBES2 = bytes.fromhex("06092a864886f70d01050d")
OID_SCRYPT = bytes.fromhex("06092b06010401da47040b")
OID_AES_256_CBC = bytes.fromhex("060960864801650304012a")
BEGIN, END = b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"-----END ENCRYPTED PRIVATE KEY-----"
PEM = re.compile(BEGIN + rb"\n([A-Za-z0-9+/=\n]+)" + END + rb"\n?")


def encrypt_signing_key(key: ec.EllipticCurvePrivateKey, passphrase: Passphrase) -> bytes:
    """A P-256 private key as encrypted PKCS #8, PEM bytes."""
    plain = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    n, r, p = keystore.SCRYPT_N, keystore.SCRYPT_R, keystore.SCRYPT_P
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    derived = Scrypt(salt, 32, n, r, p).derive(passphrase.reveal())
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(derived), modes.CBC(iv)).encryptor()
    ciphertext = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    scrypt = _der(SEQUENCE, _der(OCTETS, salt), *map(_integer, (n, r, p, 32)))
    cipher = _der(SEQUENCE, OID_AES_256_CBC, _der(OCTETS, iv))
    parameters = _der(SEQUENCE, _der(SEQUENCE, OID_SCRYPT, scrypt), cipher)
    der = _der(SEQUENCE, _der(SEQUENCE, OID_PBES2, parameters), _der(OCTETS, ciphertext))
    text = base64.b64encode(der)
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    return b"\n".join([BEGIN, *lines, END, b""])


def decrypt_signing_key(data: bytes, passphrase: Passphrase) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in a file of `encrypt_signing_key`.

    Raises:
        KeyOrSignatureError: If it is another kind of file, asks for too much work, or the
            passphrase is wrong.
    """
    match = PEM.fullmatch(data) if len(data) <= keystore.MAX_KEY_FILE_BYTES else None
    if match is None:
        raise keystore.unusable("it is no encrypted private key")
    try:
        der = base64.b64decode(match[1])
        keystore.require_bounded_scrypt(*_scrypt_parameters(der))
    except (binascii.Error, ValueError) as error:
        raise keystore.unusable("it is not encrypted as this program does it") from error
    try:
        key = serialization.load_der_private_key(der, passphrase.reveal())
    except (ValueError, TypeError) as error:
        raise keystore.wrong_passphrase() from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise keystore.unusable("it is no P-256 key")
    return key


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def _integer(value: int) -> bytes:
    return _der(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _read(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the element at the start of `data`, and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("another element was expected")
    start, length = 2, data[1]
    if length >= 128:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise ValueError("an element is cut short")
    return data[start : start + length], data[start + length :]


def _after(data: bytes, prefix: bytes) -> bytes:
    if not data.startswith(prefix):
        raise ValueError("another algorithm was expected")
    return data[len(prefix) :]


def _scrypt_parameters(der: bytes) -> tuple[int, int, int]:
    """N, r and p of an EncryptedPrivateKeyInfo under PBES2 with scrypt."""
    outer, _ = _read(der, SEQUENCE)
    scheme, _ = _read(outer, SEQUENCE)
    parameters, _ = _read(_after(scheme, OID_PBES2), SEQUENCE)
    derivation, _ = _read(parameters, SEQUENCE)
    scrypt, _ = _read(_after(derivation, OID_SCRYPT), SEQUENCE)
    _, rest = _read(scrypt, OCTETS)
    numbers = []
    for _ in range(3):
        content, rest = _read(rest, INTEGER)
        numbers.append(int.from_bytes(content, "big"))
    return numbers[0], numbers[1], numbers[2]

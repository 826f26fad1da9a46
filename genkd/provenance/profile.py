"""A node's profile: which two public keys are one node, said by both of them.

    profile = make_profile(...)                # signed by the Ethereum key and the P-256 key
    NodeProfile.from_json(parsed).check()

The Ethereum key is the node's identity (the registry knows it); the P-256 key signs the release
directory, because the tools of OpenSSF Model Signing refuse Ethereum's curve. Either signature
alone would let somebody claim another's key as his own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from genkd.canonical import parse_json
from genkd.errors import InputFileRefused, KeyOrSignatureError
from genkd.provenance.record import ProfileMessage
from genkd.provenance.secp256k1 import address_of, recover_address, sign_digest
from genkd.provenance.typed_data import parse_address, parse_bytes32, to_hex

PROFILE_VERSION = 1
MAX_PEM_CHARACTERS = 512
MAX_PROFILE_BYTES = 16 * 1024
SIGNATURE_HEX = re.compile(r"0x(?:[0-9a-f]{2}){1,128}")
MEMBERS = {"v", "node", "signingKey", "tlsFingerprint", "nextKeyHash", "signatures"}
P256_ALGORITHM = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


def pem_of(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as PEM text, in the one spelling whose hash names it."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode("ascii")


def signing_key_hash(pem: str) -> bytes:
    """sha256 of the PEM text: the `publicKey.hint` of OpenSSF Model Signing."""
    return hashlib.sha256(pem.encode("ascii")).digest()


def parse_signing_key(pem: str) -> ec.EllipticCurvePublicKey:
    """The P-256 public key of a PEM text in its one spelling.

    Raises:
        InputFileRefused: If it is anything else.
    """
    try:
        key = serialization.load_pem_public_key(pem.encode("ascii"))
        spelled_alike = isinstance(key, ec.EllipticCurvePublicKey) and pem_of(key) == pem
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _bad("its signing key is no public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad("its signing key is no P-256 key")
    if not spelled_alike:
        raise _bad("its signing key is not in canonical PEM")
    return key


@dataclass(frozen=True)
class NodeProfile:
    """The public side of a node's keys.

    Attributes:
        signing_key: The P-256 public key, PEM text.
        message: What both keys signed.
        ethereum_signature: 65 bytes, over the profile's hash.
        p256_signature: ASN.1 DER, ECDSA with SHA-256 over the profile's hash.
    """

    signing_key: str
    message: ProfileMessage
    ethereum_signature: bytes
    p256_signature: bytes

    @property
    def node(self) -> str:
        """The node's address."""
        return self.message.node

    def profile_hash(self) -> bytes:
        """What the registry keeps about this profile, 32 bytes."""
        return self.message.profile_hash()

    def check(self) -> ec.EllipticCurvePublicKey:
        """The P-256 public key, once both signatures are found good.

        Raises:
            InputFileRefused: If the signing key is malformed.
            KeyOrSignatureError: If one of the two keys did not sign this profile.
        """
        key = parse_signing_key(self.signing_key)
        if signing_key_hash(self.signing_key) != self.message.signing_key:
            raise _not_signed("it names another signing key")
        digest = self.profile_hash()
        if recover_address(digest, self.ethereum_signature) != self.node:
            raise _not_signed("its Ethereum key did not sign it")
        try:
            key.verify(self.p256_signature, digest, P256_ALGORITHM)
        except InvalidSignature as error:
            raise _not_signed("its P-256 key did not sign it") from error
        return key

    def to_json(self) -> dict[str, object]:
        """The profile as plain values."""
        return {
            "v": PROFILE_VERSION,
            "node": self.node,
            "signingKey": self.signing_key,
            "tlsFingerprint": to_hex(self.message.tls_fingerprint),
            "nextKeyHash": to_hex(self.message.next_key_hash),
            "signatures": {
                "ethereum": to_hex(self.ethereum_signature),
                "p256": to_hex(self.p256_signature),
            },
        }

    @classmethod
    def from_json(cls, value: object) -> NodeProfile:
        """The inverse of `to_json`; checks no signature yet.

        Raises:
            InputFileRefused: If a member is missing, unknown or malformed.
        """
        if not isinstance(value, Mapping) or set(value) != MEMBERS:
            raise _bad("it does not have exactly the expected members")
        if type(value["v"]) is not int or value["v"] != PROFILE_VERSION:
            raise _bad("it is of an unknown version")
        pem, signatures = value["signingKey"], value["signatures"]
        if not isinstance(pem, str) or not pem.isascii() or len(pem) > MAX_PEM_CHARACTERS:
            raise _bad("its signing key is no PEM text")
        if not isinstance(signatures, Mapping) or set(signatures) != {"ethereum", "p256"}:
            raise _bad("it does not carry two signatures")
        node = parse_address(value["node"])
        if node != value["node"]:
            raise _bad("its address is not in checksum form")
        message = ProfileMessage(
            node=node,
            signing_key=signing_key_hash(pem),
            tls_fingerprint=parse_bytes32(value["tlsFingerprint"]),
            next_key_hash=parse_bytes32(value["nextKeyHash"]),
        )
        return cls(
            pem,
            message,
            parse_signature(signatures["ethereum"]),
            parse_signature(signatures["p256"]),
        )


def make_profile(
    secret: int,
    signing_key: ec.EllipticCurvePrivateKey,
    tls_fingerprint: bytes,
    next_key_hash: bytes,
) -> NodeProfile:
    """The profile that binds two private keys, signed by both."""
    pem = pem_of(signing_key.public_key())
    message = ProfileMessage(
        address_of(secret), signing_key_hash(pem), tls_fingerprint, next_key_hash
    )
    digest = message.profile_hash()
    return NodeProfile(
        pem, message, sign_digest(secret, digest), signing_key.sign(digest, P256_ALGORITHM)
    )


def read_profile(path: Path) -> NodeProfile:
    """The profile in a file, both its signatures good.

    Raises:
        InputFileRefused: If it is missing, too large or malformed.
        KeyOrSignatureError: If it is not genuine.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
        if len(data) > MAX_PROFILE_BYTES:
            raise ValueError(f"it is larger than {MAX_PROFILE_BYTES} bytes")
        profile = NodeProfile.from_json(parse_json(data))
    except OSError as error:
        raise _bad(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _bad(str(error)) from error
    profile.check()
    return profile


def parse_signature(text: object) -> bytes:
    """A signature as `0x` and lower-case digits, at most 128 bytes.

    Raises:
        InputFileRefused: If it is anything else.
    """
    if not isinstance(text, str) or not SIGNATURE_HEX.fullmatch(text):
        raise InputFileRefused(
            "a signature is not 0x and hexadecimal digits", hint="ask for the original file"
        )
    return bytes.fromhex(text[2:])


def _bad(reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"the node profile is not usable: {reason}", hint="ask the node for its profile again"
    )


def _not_signed(reason: str) -> KeyOrSignatureError:
    return KeyOrSignatureError(
        f"the node profile is not genuine: {reason}", hint="ask the node for its profile again"
    )

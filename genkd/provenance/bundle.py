"""The release directory's signature, as OpenSSF Model Signing defines it.

    data = sign_directory("student-0x...", {"student.safetensors": "ab12..."}, keys)     # model.sig
    check_bundle(data, "student-0x...", digests, profile)

A Sigstore bundle v0.3 around a DSSE envelope around an in-toto statement that lists the files. The
stock tool, `model_signing verify key`, accepts it: a third party needs nothing of ours to check who
signed the files. What is checked is the stored bytes, in the one spelling this project writes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from genkd.canonical import canonical_json, parse_json
from genkd.errors import InputFileRefused, KeyOrSignatureError
from genkd.provenance.profile import P256_ALGORITHM, NodeProfile

BUNDLE_NAME = "model.sig"
# Written after the bundle, or into it: the two files the signature cannot cover.
IGNORED = (BUNDLE_NAME, "receipt.json")

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MAX_BUNDLE_BYTES = 64 * 1024


class ArtifactSigner(Protocol):
    """Who signs a directory; `node_keys.NodeKeys` is one."""

    profile: NodeProfile

    def sign_artifact(self, data: bytes) -> bytes:
        """ECDSA over P-256 with SHA-256, ASN.1 DER."""
        ...


def pre_authentication_encoding(payload: bytes) -> bytes:
    """PAE of DSSE v1: what the signature covers, so that type and payload cannot be confused."""
    return b"DSSEv1 %d %s %d %s" % (
        len(PAYLOAD_TYPE),
        PAYLOAD_TYPE.encode("ascii"),
        len(payload),
        payload,
    )


def directory_statement(name: str, digests: Mapping[str, str]) -> dict[str, object]:
    """The in-toto statement about a directory: one resource per file, sorted by name.

    The subject's digest is the sha256 over the resources' digests, concatenated.

    Args:
        name: The directory's name; it only informs.
        digests: Hex sha256 by file name.
    """
    names = sorted(digests)
    root = hashlib.sha256(b"".join(bytes.fromhex(digests[file]) for file in names)).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(IGNORED),
            },
            "resources": [
                {"name": file, "algorithm": "sha256", "digest": digests[file]} for file in names
            ],
        },
    }


def sign_directory(name: str, digests: Mapping[str, str], signer: ArtifactSigner) -> bytes:
    """The bundle for a directory, JSON bytes.

    Args:
        name: The directory's name.
        digests: Hex sha256 of every file but the ignored ones.
        signer: Holds the P-256 key.
    """
    payload = canonical_json(directory_statement(name, digests))
    signature = signer.sign_artifact(pre_authentication_encoding(payload))
    return _bundle(payload, signature, signer.profile)


def _bundle(payload: bytes, signature: bytes, profile: NodeProfile) -> bytes:
    return canonical_json(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": profile.message.signing_key.hex()},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode("ascii"),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode("ascii"), "keyid": ""}],
            },
        }
    )


def check_bundle(
    data: bytes,
    name: str,
    digests: Mapping[str, str],
    profile: NodeProfile,
    key: ec.EllipticCurvePublicKey,
) -> None:
    """Check that a node signed exactly these files.

    Args:
        data: The bundle's stored bytes.
        name: The directory's name as signed.
        digests: Hex sha256 of every file but the ignored ones, computed from their bytes.
        profile: The node's profile.
        key: Its P-256 key, from `profile.check()`.

    Raises:
        InputFileRefused: If it is no bundle of this kind.
        KeyOrSignatureError: If the key did not sign it, or it signed other files.
    """
    payload, signature = _open_bundle(data)
    if data != _bundle(payload, signature, profile):
        raise _bad("it names another key than the profile, or is no plain bundle v0.3")
    try:
        key.verify(signature, pre_authentication_encoding(payload), P256_ALGORITHM)
    except InvalidSignature as error:
        raise KeyOrSignatureError(
            "model.sig was not made by the node's P-256 key over this payload",
            hint="the release was altered; ask the node for it again",
        ) from error
    # Everything in the payload follows from the files, so it is compared, not interpreted.
    if payload != canonical_json(directory_statement(name, digests)):
        raise KeyOrSignatureError(
            "model.sig is the node's signature over other files",
            hint="the release was altered or mixed; ask the node for it again",
        )


def _open_bundle(data: bytes) -> tuple[bytes, bytes]:
    """The payload and the signature in a bundle; what else it holds is for the caller to check."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise _bad(f"it is larger than {MAX_BUNDLE_BYTES} bytes")
    try:
        envelope = parse_json(data)["dsseEnvelope"]  # type: ignore[index] # TypeError is caught
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    except (ValueError, TypeError, LookupError) as error:
        raise _bad("it is no Sigstore bundle with an envelope") from error
    return payload, signature


def _bad(reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"model.sig is not usable: {reason}", hint="ask the node for its release again"
    )

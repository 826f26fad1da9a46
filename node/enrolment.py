"""Ask a coordinator to be let in, knowing nothing of it but an address and a fingerprint.

    answer = enrol("federation.example:9092", fingerprint, profile, keys, supernode_key, folder)
    answer = ask_state("federation.example:9092", folder, profile.node)

The first question is asked of whoever answers: for the certificate of the coordinator's authority.
It is believed if its SHA-256 is the fingerprint that a person brought, and from then on every
connection must prove itself under this certificate and no other; those that the machine trusts
otherwise do not count. Only then is anything said, and that is the node's profile, which is public,
and a signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography import x509

from contracts.authority import (
    MAX_AUTHORITY_BYTES,
    authority_pem,
    fingerprint_of,
    parse_fingerprint,
    read_authority,
)
from contracts.enrolment import (
    CARD_PATH,
    JOIN_PATH,
    MAX_ANSWER_BYTES,
    MAX_CARD_BYTES,
    FederationCard,
    JoinAnswer,
    JoinRequest,
)
from genkd.durable import atomic_write, unwritable
from genkd.errors import (
    ConfigurationError,
    GenKDError,
    KeyOrSignatureError,
    Stopped,
)
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import NodeProfile
from node.coordinator_connection import CoordinatorConnection, NotFound, parse_coordinator

__all__ = ["ask_state", "enrol", "parse_coordinator"]

AUTHORITY_FILE: Final = "ca.pem"
CARD_FILE: Final = "federation.json"
SECONDS: Final = 20.0


def enrol(
    coordinator: str,
    fingerprint: str,
    profile: NodeProfile,
    keys: NodeKeys,
    supernode_public_key: str | bytes,
    folder: Path,
    *,
    timeout: float = SECONDS,
) -> JoinAnswer:
    """Ask to join; asking again is how one asks whether one was admitted.

    Leaves the authority's certificate in `folder/ca.pem` and the federation's card in
    `folder/federation.json`.

    Args:
        coordinator: `host:port`.
        fingerprint: SHA-256 of the authority's certificate, as the coordinator shows it.
        profile: The node's.
        keys: The node's; they sign that this SuperNode speaks for it.
        supernode_public_key: PEM or OpenSSH text.
        folder: The membership's, which exists.
        timeout: Seconds for each of the at most three exchanges.

    Returns:
        How it stands with the request.

    Raises:
        UsageError: If the address or the fingerprint is none.
        ConfigurationError: If the folder is that of another federation.
        CoordinatorUnreachable: If nobody answers, or what answers is no coordinator, or it is busy.
        KeyOrSignatureError: If it is not the coordinator of this fingerprint, or its certificate is
            not for this address or this time.
        RefusedByPolicy: If it refuses the request.
        InputFileRefused: If it answers in another version of the protocol.
        ResourceExhausted: If the folder cannot be written.
    """
    if profile != keys.profile:
        raise KeyOrSignatureError(
            f"the profile of {profile.node} is not that of the keys", hint="check the key folder"
        )
    server = CoordinatorConnection(coordinator, timeout)
    digits = parse_fingerprint(fingerprint)
    authority = _known_authority(folder, digits) or server.authority(digits)
    server.trust(authority)
    card = FederationCard.from_bytes(server.get(CARD_PATH, MAX_CARD_BYTES))
    request = JoinRequest.make(keys, supernode_public_key, card.domain, bytes.fromhex(digits))
    atomic_write(folder / AUTHORITY_FILE, authority_pem(authority))
    atomic_write(folder / CARD_FILE, card.to_bytes())
    return JoinAnswer.from_bytes(server.post(JOIN_PATH, request.to_bytes(), MAX_ANSWER_BYTES))


def ask_state(coordinator: str, folder: Path, node: str, *, timeout: float = SECONDS) -> JoinAnswer:
    """How it stands with a node's request; needs no keys.

    Args:
        coordinator: `host:port`.
        folder: The membership's, in which `enrol` left the authority's certificate.
        node: The node's address.
        timeout: Seconds.

    Raises:
        ConfigurationError: If the folder has no certificate of an authority.
        Stopped: If it has no request of this node: it was never there, or has been dropped.
        UsageError, CoordinatorUnreachable, KeyOrSignatureError, RefusedByPolicy, InputFileRefused:
            As `enrol`.
    """
    server = CoordinatorConnection(coordinator, timeout)
    server.trust(_kept_authority(folder / AUTHORITY_FILE))
    try:
        answer = server.get(f"{JOIN_PATH}/{node}", MAX_ANSWER_BYTES)
    except NotFound as error:
        raise Stopped(
            f"{server.name} has no request of {node} to join", hint="join again: it asks anew"
        ) from error
    return JoinAnswer.from_bytes(answer)


def _known_authority(folder: Path, fingerprint: str) -> x509.Certificate | None:
    """The authority that was believed before, None if there is none."""
    path = folder / AUTHORITY_FILE
    if not path.exists():
        return None
    authority = _kept_authority(path)
    if fingerprint_of(authority) != fingerprint:
        raise ConfigurationError(
            f"{folder} belongs to the federation with the fingerprint {fingerprint_of(authority)}",
            hint="give that fingerprint, or name another folder with --membership",
        )
    return authority


def _kept_authority(path: Path) -> x509.Certificate:
    try:
        with path.open("rb") as file:
            return read_authority(file.read(MAX_AUTHORITY_BYTES + 1))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no {path}", hint="join first: genkd-node join HOST:PORT --ca-fingerprint ..."
        ) from error
    except OSError as error:
        raise unwritable(path, error) from error
    except GenKDError as error:
        raise ConfigurationError(
            f"{path} is damaged: {error.message}", hint="delete it, and join again"
        ) from error

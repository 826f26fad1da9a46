"""What a node and a coordinator say to each other before Flower connects them.

    card = FederationCard.from_bytes(data)                          # what the coordinator offers
    request = JoinRequest.make(keys, supernode_key, card.domain, authority)
    JoinRequest.from_bytes(data).check(card.domain, authority)      # at the coordinator
    answer = JoinAnswer.from_bytes(data)

Three documents of canonical JSON, fetched and sent by HTTPS under `/genkd/`. Whoever reads one
believes nothing: what is not exactly what `to_bytes` writes is refused.

A request binds a SuperNode's key to a node: the node's Ethereum key signs it, for one registry and
under the authority whose certificate the node saw. So nobody joins in another's name with a
SuperNode of his own, nobody carries a request to another federation, and a certificate exchanged on
the way to the node is noticed at the coordinator too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Self, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from genkd.canonical import canonical_json, parse_json
from genkd.errors import InputFileRefused, KeyOrSignatureError
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import NodeProfile, parse_signature, pem_of
from genkd.provenance.record import TypedMessage
from genkd.provenance.secp256k1 import recover_address
from genkd.provenance.typed_data import BYTES32, Domain, parse_address, to_hex

PROTOCOL: Final = 1
MAX_CARD_BYTES: Final = 128 * 1024
MAX_REQUEST_BYTES: Final = 16 * 1024
MAX_ANSWER_BYTES: Final = 4 * 1024
MAX_RUNS, MAX_RUN_CHARACTERS = 128, 200
MAX_URL_CHARACTERS, MAX_REASON_CHARACTERS = 2048, 300
MAX_CONFIRMATIONS = 100_000

# Where a coordinator serves them.
AUTHORITY_PATH: Final = "/genkd/ca.pem"
CARD_PATH: Final = "/genkd/federation.json"
JOIN_PATH: Final = "/genkd/join"

Confirmations = int | Literal["finalized", "safe"]
JoinState = Literal["pending", "admitted", "refused"]
SUPERNODE_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclass(frozen=True)
class JoinMessage(TypedMessage):
    """What the node's Ethereum key signs.

    Attributes:
        node: Its address, checksum form.
        profile_hash: Of the node's profile.
        supernode_key: sha256 of the SuperNode's public key as PEM text.
        authority: sha256 of the certificate of the coordinator's authority, DER.
    """

    TYPE: ClassVar[str] = (
        "Join(address node,bytes32 profileHash,bytes32 supernodeKey,bytes32 authority)"
    )
    node: str
    profile_hash: bytes
    supernode_key: bytes
    authority: bytes


@dataclass(frozen=True)
class FederationCard:
    """What a coordinator says about its federation.

    Attributes:
        coordinator: Its address, checksum form.
        chain_id: The chain of the registry.
        registry: The registry's address, checksum form.
        rpc_url: An endpoint of that chain which nodes may use; None leaves it to them.
        confirmations: What counts as final there.
        app_sha256: Of the one app bundle that is run, 64 lower-case digits.
        runs: The names of the open runs.
        protocol: Of these three documents.
    """

    coordinator: str
    chain_id: int
    registry: str
    rpc_url: str | None
    confirmations: Confirmations
    app_sha256: str
    runs: tuple[str, ...]
    protocol: int = PROTOCOL

    @property
    def domain(self) -> Domain:
        """The registry, as signatures name it."""
        return Domain(self.chain_id, self.registry)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                "protocol": self.protocol,
                "coordinator": self.coordinator,
                "chainId": self.chain_id,
                "registry": self.registry,
                "rpcUrl": self.rpc_url,
                "confirmations": self.confirmations,
                "appSha256": self.app_sha256,
                "runs": list(self.runs),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`.

        Raises:
            InputFileRefused: If the bytes are anything else.
        """
        what = "the coordinator's card"
        members = {"protocol", "coordinator", "chainId", "registry", "rpcUrl", "confirmations"}
        value = _members(what, data, MAX_CARD_BYTES, members | {"appSha256", "runs"})
        _require_protocol(what, value["protocol"])
        runs = value["runs"]
        if not isinstance(runs, list) or len(runs) > MAX_RUNS:
            raise _bad(what, "its runs are no list of names")
        names = [_text(what, "the name of a run", run, MAX_RUN_CHARACTERS) for run in runs]
        url = value["rpcUrl"]
        digest = value["appSha256"]
        if not isinstance(digest, str) or not BYTES32.fullmatch("0x" + digest):
            raise _bad(what, "the hash of its app is no SHA-256")
        card = cls(
            coordinator=parse_address(value["coordinator"]),
            chain_id=Domain(_whole(what, value["chainId"]), "0x" + "0" * 40).chain_id,
            registry=parse_address(value["registry"]),
            rpc_url=None if url is None else _text(what, "its endpoint", url, MAX_URL_CHARACTERS),
            confirmations=_confirmations(what, value["confirmations"]),
            app_sha256=digest,
            runs=tuple(names),
        )
        _require_same(what, card.to_bytes(), data)
        return card


@dataclass(frozen=True)
class JoinRequest:
    """A node asks to be let in, with the SuperNode that speaks for it.

    Attributes:
        profile: The node's profile.
        supernode_key: The SuperNode's public key, PEM text in its one spelling.
        signature: 65 bytes: the node's Ethereum key over `message`.
    """

    profile: NodeProfile
    supernode_key: str
    signature: bytes

    @classmethod
    def make(
        cls, keys: NodeKeys, supernode_key: str | bytes, domain: Domain, authority: bytes
    ) -> Self:
        """Sign a request.

        Args:
            keys: The node's.
            supernode_key: The SuperNode's public key, PEM or OpenSSH text.
            domain: The federation's registry.
            authority: sha256 of the coordinator's authority's certificate, 32 bytes.

        Raises:
            InputFileRefused: If the SuperNode's key is none that Flower accepts.
        """
        unsigned = cls(keys.profile, supernode_key_pem(supernode_key), b"")
        return cls(
            unsigned.profile,
            unsigned.supernode_key,
            keys.sign(unsigned.message(authority), domain),
        )

    @property
    def node(self) -> str:
        """The address of who asks."""
        return self.profile.node

    @property
    def supernode_key_hash(self) -> bytes:
        """sha256 of the SuperNode's public key, 32 bytes."""
        return supernode_key_hash(self.supernode_key)

    def message(self, authority: bytes) -> JoinMessage:
        """What is signed, under an authority."""
        return JoinMessage(
            self.node, self.profile.profile_hash(), self.supernode_key_hash, authority
        )

    def check(self, domain: Domain, authority: bytes) -> None:
        """Require that the node itself asks, here.

        Raises:
            InputFileRefused: If its P-256 key is malformed.
            KeyOrSignatureError: If the profile is not signed by both of its keys, or the request
                is not signed by the node for this registry and this authority.
        """
        self.profile.check()
        digest = self.message(authority).digest(domain)
        if recover_address(digest, self.signature) != self.node:
            raise KeyOrSignatureError(
                f"{self.node} did not sign this request for this federation",
                hint="join again, with the fingerprint that this coordinator shows",
            )

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                "protocol": PROTOCOL,
                "profile": self.profile.to_json(),
                "supernodeKey": self.supernode_key,
                "signature": to_hex(self.signature),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`; checks no signature yet.

        Raises:
            InputFileRefused: If the bytes are anything else.
        """
        what = "the request to join"
        members = {"protocol", "profile", "supernodeKey", "signature"}
        value = _members(what, data, MAX_REQUEST_BYTES, members)
        _require_protocol(what, value["protocol"])
        key = value["supernodeKey"]
        if not isinstance(key, str) or not key.isascii() or supernode_key_pem(key) != key:
            raise _bad(what, "the SuperNode's key is not in canonical PEM")
        profile = NodeProfile.from_json(value["profile"])
        request = cls(profile, key, parse_signature(value["signature"]))
        _require_same(what, request.to_bytes(), data)
        return request


@dataclass(frozen=True)
class JoinAnswer:
    """How it stands with a request.

    Attributes:
        state: `pending` until a person at the coordinator decides.
        reason: Why, in a line; may be empty.
    """

    state: JoinState
    reason: str = ""

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json({"protocol": PROTOCOL, "state": self.state, "reason": self.reason})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`.

        Raises:
            InputFileRefused: If the bytes are anything else.
        """
        what = "the coordinator's answer"
        value = _members(what, data, MAX_ANSWER_BYTES, {"protocol", "state", "reason"})
        _require_protocol(what, value["protocol"])
        state, reason = value["state"], value["reason"]
        if state != "pending" and state != "admitted" and state != "refused":
            raise _bad(what, "its state is none there is")
        answer = cls(
            state,
            "" if reason == "" else _text(what, "its reason", reason, MAX_REASON_CHARACTERS),
        )
        _require_same(what, answer.to_bytes(), data)
        return answer


def supernode_key_pem(text: str | bytes) -> str:
    """A SuperNode's public key as PEM, the spelling that a SuperLink registers.

    Args:
        text: PEM or OpenSSH.

    Raises:
        InputFileRefused: If it is no public key of P-256, P-384 or P-521.
    """
    try:
        data = text.encode() if isinstance(text, str) else text
        if len(data) > MAX_REQUEST_BYTES:
            raise ValueError("too long")
        is_pem = data.startswith(b"-----")
        key = (
            serialization.load_pem_public_key(data)
            if is_pem
            else serialization.load_ssh_public_key(data)
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _bad("the SuperNode's key", "it is no public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, SUPERNODE_CURVES
    ):
        raise _bad("the SuperNode's key", "it is of none of the curves P-256, P-384, P-521")
    return pem_of(key)


def supernode_key_hash(pem: str) -> bytes:
    """sha256 of a SuperNode's public key in PEM, 32 bytes."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(pem.encode("ascii"))
    return digest.finalize()


def _members(what: str, data: bytes, limit: int, members: set[str]) -> Mapping[str, object]:
    if len(data) > limit:
        raise _bad(what, f"it has more than {limit} bytes")
    try:
        value = parse_json(data)
    except ValueError as error:
        raise _bad(what, str(error)) from error
    if not isinstance(value, dict) or set(value) != members:
        raise _bad(what, "it does not have exactly the expected members")
    return value


def _require_protocol(what: str, value: object) -> None:
    if type(value) is not int or value != PROTOCOL:
        raise InputFileRefused(
            f"{what} is of another version of the protocol than {PROTOCOL}",
            hint="both sides need the same version of this program",
        )


def _text(what: str, name: str, value: object, limit: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= limit or not value.isprintable():
        raise _bad(what, f"{name} is no printable text of 1 to {limit} characters")
    return value


def _whole(what: str, value: object) -> int:
    if type(value) is not int:
        raise _bad(what, "a number in it is not whole")
    return value


def _confirmations(what: str, value: object) -> Confirmations:
    if value == "finalized" or value == "safe":
        return cast(Confirmations, value)
    if not 0 <= _whole(what, value) <= MAX_CONFIRMATIONS:
        raise _bad(what, "its confirmations are out of range")
    return cast(int, value)


def _require_same(what: str, written: bytes, read: bytes) -> None:
    if written != read:
        raise _bad(what, "it is not in canonical form")


def _bad(what: str, reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"{what} is not usable: {reason}", hint="both sides need the same version of this program"
    )

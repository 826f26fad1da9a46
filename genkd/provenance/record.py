"""What a node signs with its Ethereum key, and what the registry keeps.

    record_id = record.digest(domain)         # what is signed, the record's key, the Merkle leaf
    signature = sign_digest(secret, record_id)

The type strings below are a contract between this file and `contracts/src/StudentRegistry.sol`:
change one character and every signature is void. `tests/vectors` holds digests that both must
reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import ClassVar, Self

from genkd.errors import InputFileRefused
from genkd.provenance.typed_data import (
    BYTES32,
    MAX_SAFE_INTEGER,
    PROFILE_SEPARATOR,
    Domain,
    hash_struct,
    keccak256,
    members,
    parse_address,
    parse_bytes32,
    to_hex,
    typed_digest,
)

ZERO_HASH = bytes(32)


class TypedMessage:
    """A struct of EIP-712: a frozen dataclass whose fields follow the members of its `TYPE`."""

    TYPE: ClassVar[str]

    def _values(self) -> list[bytes | str | int]:
        return [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]

    def digest_under(self, separator: bytes) -> bytes:
        """The 32 bytes to sign under a domain separator.

        Raises:
            ValueError: If a value does not fit its member.
        """
        return typed_digest(separator, hash_struct(self.TYPE, self._values()))

    def digest(self, domain: Domain) -> bytes:
        """The 32 bytes to sign for one registry on one chain."""
        return self.digest_under(domain.separator())

    def to_json(self) -> dict[str, str | int]:
        """Members by their Solidity names: hashes as 0x digits, addresses in checksum form."""
        pairs = zip(members(self.TYPE), self._values(), strict=True)
        return {name: to_hex(v) if isinstance(v, bytes) else v for (_, name), v in pairs}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The inverse of `to_json`: exactly these members, each in its one spelling.

        Raises:
            InputFileRefused: If a member is missing, unknown, out of range, or spelled otherwise.
        """
        wanted = members(cls.TYPE)
        if not isinstance(value, Mapping) or set(value) != {name for _, name in wanted}:
            raise InputFileRefused(
                f"{cls.TYPE.partition('(')[0]} does not have exactly the expected members",
                hint="it was made by another version of this program, or altered",
            )
        parsed = [_parse_member(kind, name, value[name]) for kind, name in wanted]
        return cls(*parsed)


def _parse_member(kind: str, name: str, value: object) -> bytes | str | int:
    if kind == "bytes32":
        return parse_bytes32(value)
    if kind == "address":
        address = parse_address(value)
        if address == value:
            return address
    elif isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= min(2 ** int(kind[4:]) - 1, MAX_SAFE_INTEGER):
            return value
    raise InputFileRefused(
        f"{name} is not a {kind} in its canonical form",
        hint="addresses carry their checksum, numbers are whole and in range",
    )


@dataclass(frozen=True)
class StudentRecord(TypedMessage):
    """One student as its node vouches for it; its digest is the record id.

    No nonce is needed: the digest itself is the key under which the registry keeps it, so a repeat
    is recognised and a replay under another domain has another digest.

    Attributes:
        file_hash: sha256 of student.safetensors.
        tensor_root: `genkd.digest.tensor_root`; survives re-serialising.
        metadata_hash: sha256 of provenance.json, byte for byte.
        teacher_commitment: `commit_to_teacher`.
        run_id: The federation's run, 32 bytes.
        parents_root: `parents_root` of the students it was made from; zero when none.
        node: The signing key's address, checksum form.
        round: The round within the run, 0 to 2^32 - 1.
        deadline: The last Unix second at which it may be put on the chain.
    """

    TYPE: ClassVar[str] = (
        "Student(bytes32 fileHash,bytes32 tensorRoot,bytes32 metadataHash,"
        "bytes32 teacherCommitment,bytes32 runId,bytes32 parentsRoot,address node,uint32 round,"
        "uint64 deadline)"
    )
    file_hash: bytes
    tensor_root: bytes
    metadata_hash: bytes
    teacher_commitment: bytes
    run_id: bytes
    parents_root: bytes
    node: str
    round: int
    deadline: int


@dataclass(frozen=True)
class TeacherMessage(TypedMessage):
    """A node commits to a teacher without naming it; anyone may carry it to the chain."""

    TYPE: ClassVar[str] = "Teacher(bytes32 commitment,address node,uint64 deadline)"
    commitment: bytes
    node: str
    deadline: int


@dataclass(frozen=True)
class Revocation(TypedMessage):
    """A node takes a record back; anyone may carry it to the chain."""

    TYPE: ClassVar[str] = "Revoke(bytes32 recordId,uint8 reason,address node)"
    record_id: bytes
    reason: int
    node: str


@dataclass(frozen=True)
class Rotation(TypedMessage):
    """The next key takes over; signed by the new key, whose hash was committed beforehand.

    Attributes:
        old_key: The address to retire.
        new_key: The address that takes over.
        next_key_hash: `key_hash` of the key after that.
        profile_hash: `profile_hash` of the node's new profile.
        deadline: The last Unix second at which it may be put on the chain.
    """

    TYPE: ClassVar[str] = (
        "Rotate(address oldKey,address newKey,bytes32 nextKeyHash,"
        "bytes32 profileHash,uint64 deadline)"
    )
    old_key: str
    new_key: str
    next_key_hash: bytes
    profile_hash: bytes
    deadline: int


@dataclass(frozen=True)
class ProfileMessage(TypedMessage):
    """Which keys belong together: signed by both of them, its digest on the chain at enrolment.

    Attributes:
        node: The Ethereum key's address.
        signing_key: sha256 of the P-256 public key's PEM text, the hint of its bundles.
        tls_fingerprint: sha256 of the node's TLS certificate (DER); zero when it has none.
        next_key_hash: `key_hash` of the key that may take over.
    """

    TYPE: ClassVar[str] = (
        "Profile(address node,bytes32 signingKey,bytes32 tlsFingerprint,bytes32 nextKeyHash)"
    )
    node: str
    signing_key: bytes
    tls_fingerprint: bytes
    next_key_hash: bytes

    def profile_hash(self) -> bytes:
        """The digest under the domain that names no chain: a profile outlives registries."""
        return self.digest_under(PROFILE_SEPARATOR)


@dataclass(frozen=True)
class Acknowledgement(TypedMessage):
    """A coordinator's signed word that a release reached it, kept by the node as evidence.

    The contract never sees it. A coordinator that takes a release and does not record it can be
    shown to have done so.
    """

    TYPE: ClassVar[str] = (
        "Acknowledgement(bytes32 recordId,bytes32 runId,uint32 round,uint64 receivedAt)"
    )
    record_id: bytes
    run_id: bytes
    round: int
    received_at: int


class RevocationReason(IntEnum):
    """Why a record was taken back; the number is what the chain keeps."""

    UNSPECIFIED = 0
    KEY_COMPROMISED = 1
    DEFECTIVE = 2
    SUPERSEDED = 3
    DATA_WITHDRAWN = 4


def commit_to_teacher(node: str, teacher_sha256: bytes, salt: bytes) -> bytes:
    """keccak(address | sha256 | salt): binds the node to a teacher and tells nothing about it.

    Without the salt, anyone who has the teacher file could find who uses it.

    Args:
        node: The node's address.
        teacher_sha256: 32 bytes.
        salt: 32 random bytes, kept by the node.
    """
    if len(teacher_sha256) != 32 or len(salt) != 32:
        raise ValueError("the teacher's hash and the salt have 32 bytes each")
    return keccak256(bytes.fromhex(node[2:]) + teacher_sha256 + salt)


def parents_root(record_ids: Sequence[bytes]) -> bytes:
    """Keccak over the sorted record ids of the parents, 32 bytes; zero when there are none.

    Raises:
        ValueError: If one is given twice, or is not 32 bytes.
    """
    if not record_ids:
        return ZERO_HASH
    if len(set(record_ids)) != len(record_ids) or any(len(one) != 32 for one in record_ids):
        raise ValueError("parents are distinct record ids of 32 bytes")
    return keccak256(b"".join(sorted(record_ids)))


def run_id_of(text: str) -> bytes:
    """The id of a run: itself if it is written as 32 bytes, else the keccak of its name.

    Args:
        text: `0x` and 64 hexadecimal digits, or a name.
    """
    if BYTES32.fullmatch(text):
        return parse_bytes32(text)
    return keccak256(text.encode("utf-8"))


def key_hash(address: str) -> bytes:
    """What is committed on the chain about a key before it is used: keccak(abi.encode(address))."""
    return keccak256(bytes(12) + bytes.fromhex(address[2:]))

"""The receipt beside a student: its signed record, the node's profile, its place on the chain.

    receipt = Receipt.from_bytes(data)
    receipt.record_id() == receipt.record.digest(receipt.domain)

`model.sig` cannot cover this file, which is completed after signing. Nothing in it is believed for
standing here: record and profile carry signatures of their own, and the place on the chain is
looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from genkd.canonical import canonical_json, parse_json
from genkd.errors import InputFileRefused
from genkd.provenance.merkle import MAX_PROOF_LENGTH
from genkd.provenance.profile import NodeProfile, parse_signature
from genkd.provenance.record import StudentRecord
from genkd.provenance.typed_data import (
    MAX_SAFE_INTEGER,
    Domain,
    parse_address,
    parse_bytes32,
    to_hex,
)

RECEIPT_VERSION = 1
MAX_RECEIPT_BYTES = 64 * 1024
MEMBERS = {*("v", "chainId", "registry", "recordId", "record", "signature", "profile", "inclusion")}


@dataclass(frozen=True)
class Inclusion:
    """Where the registry keeps a record.

    Attributes:
        transaction: Hash of the transaction that put it there, 32 bytes.
        block: The number of its block.
        proof: Siblings up to its round's root; None when it was registered by itself.
    """

    transaction: bytes
    block: int
    proof: tuple[bytes, ...] | None

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        proof = None if self.proof is None else [to_hex(one) for one in self.proof]
        return {"transaction": to_hex(self.transaction), "block": self.block, "proof": proof}

    @classmethod
    def from_json(cls, value: object) -> Inclusion:
        """The inverse of `to_json`.

        Raises:
            InputFileRefused: If it is anything else.
        """
        if not isinstance(value, Mapping) or set(value) != {"transaction", "block", "proof"}:
            raise _bad("its inclusion does not have exactly the expected members")
        block, proof = value["block"], value["proof"]
        if type(block) is not int or not 0 <= block <= MAX_SAFE_INTEGER:
            raise _bad("its block is not a number")
        if proof is not None:
            if not isinstance(proof, list) or len(proof) > MAX_PROOF_LENGTH:
                raise _bad(f"its proof is not a list of at most {MAX_PROOF_LENGTH} hashes")
            proof = tuple(parse_bytes32(one) for one in proof)
        return cls(parse_bytes32(value["transaction"]), block, proof)


@dataclass(frozen=True)
class Receipt:
    """What receipt.json says.

    Attributes:
        domain: The registry the record is for.
        record: The signed record.
        signature: The node's signature over the record id, 65 bytes.
        profile: The node's two public keys.
        inclusion: Where the registry keeps it; None while it is signed only.
    """

    domain: Domain
    record: StudentRecord
    signature: bytes
    profile: NodeProfile
    inclusion: Inclusion | None = None

    def record_id(self) -> bytes:
        """The record's EIP-712 digest in its domain, 32 bytes."""
        return self.record.digest(self.domain)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                "v": RECEIPT_VERSION,
                "chainId": self.domain.chain_id,
                "registry": self.domain.contract,
                "recordId": to_hex(self.record_id()),
                "record": self.record.to_json(),
                "signature": to_hex(self.signature),
                "profile": self.profile.to_json(),
                "inclusion": None if self.inclusion is None else self.inclusion.to_json(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Parse a receipt; checks no signature yet.

        Raises:
            InputFileRefused: If the bytes are not exactly what `to_bytes` writes for some receipt.
        """
        if len(data) > MAX_RECEIPT_BYTES:
            raise _bad(f"it is larger than {MAX_RECEIPT_BYTES} bytes")
        try:
            value = parse_json(data)
        except ValueError as error:
            raise _bad(str(error)) from error
        if not isinstance(value, dict) or set(value) != MEMBERS:
            raise _bad("it does not have exactly the expected members")
        if type(value["chainId"]) is not int:
            raise _bad("its chain id is not a number")
        inclusion = value["inclusion"]
        receipt = cls(
            domain=Domain(value["chainId"], parse_address(value["registry"])),
            record=StudentRecord.from_json(value["record"]),
            signature=parse_signature(value["signature"]),
            profile=NodeProfile.from_json(value["profile"]),
            inclusion=None if inclusion is None else Inclusion.from_json(inclusion),
        )
        # Also refuses another version and a record id that is not the record's.
        if receipt.to_bytes() != data:
            raise _bad("it is of another version, its record id is wrong, or it was rewritten")
        return receipt


def _bad(reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"receipt.json is not usable: {reason}", hint="ask the node for its release again"
    )

"""A coordinator's signed word that a release reached it, as it travels and as a node keeps it.

    data = SignedAcknowledgement.sign(message, keys, domain).to_bytes()
    SignedAcknowledgement.from_bytes(data).check(coordinator)

The registry never sees it. A coordinator that takes a release and does not record it can be shown
to have done so.
"""

from __future__ import annotations

from dataclasses import dataclass

from genkd.canonical import canonical_json, parse_json
from genkd.errors import InputFileRefused, VerificationFailed
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.profile import parse_signature
from genkd.provenance.record import Acknowledgement
from genkd.provenance.secp256k1 import recover_address
from genkd.provenance.typed_data import Domain, parse_address, to_hex

VERSION = 1
MAX_ACKNOWLEDGEMENT_BYTES = 4096


@dataclass(frozen=True)
class SignedAcknowledgement:
    """An acknowledgement and the signature under it.

    Attributes:
        domain: The registry of the federation.
        message: What is acknowledged.
        signature: The coordinator's Ethereum key's, 65 bytes.
    """

    domain: Domain
    message: Acknowledgement
    signature: bytes

    @classmethod
    def sign(
        cls, message: Acknowledgement, keys: NodeKeys, domain: Domain
    ) -> SignedAcknowledgement:
        """Acknowledge."""
        return cls(domain, message, keys.sign(message, domain))

    def check(self, coordinator: str) -> None:
        """Require that the coordinator signed it.

        Raises:
            KeyOrSignatureError: If the signature is malformed.
            VerificationFailed: If somebody else signed it.
        """
        if recover_address(self.message.digest(self.domain), self.signature) != coordinator:
            raise VerificationFailed(
                f"{coordinator} did not sign the acknowledgement",
                hint="ask the coordinator for it again",
            )

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                "v": VERSION,
                "chainId": self.domain.chain_id,
                "registry": self.domain.contract,
                "acknowledgement": self.message.to_json(),
                "signature": to_hex(self.signature),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedAcknowledgement:
        """Parse one; checks no signature yet.

        Raises:
            InputFileRefused: If the bytes are not exactly what `to_bytes` writes for some one.
        """
        try:
            value = parse_json(data) if len(data) <= MAX_ACKNOWLEDGEMENT_BYTES else None
        except ValueError as error:
            raise _bad(str(error)) from error
        wanted = {"v", "chainId", "registry", "acknowledgement", "signature"}
        if not isinstance(value, dict) or set(value) != wanted or type(value["chainId"]) is not int:
            raise _bad("it does not have exactly the expected members")
        found = cls(
            Domain(value["chainId"], parse_address(value["registry"])),
            Acknowledgement.from_json(value["acknowledgement"]),
            parse_signature(value["signature"]),
        )
        if found.to_bytes() != data:
            raise _bad("it is of another version, or was rewritten")
        return found


def _bad(reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"the acknowledgement is not usable: {reason}", hint="ask the coordinator for it again"
    )

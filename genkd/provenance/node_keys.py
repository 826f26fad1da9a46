"""A node's two private keys in memory: they sign, and show themselves to nobody.

signature = keys.sign(record, domain)
"""

from __future__ import annotations

from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric import ec

from genkd.errors import KeyOrSignatureError
from genkd.provenance.profile import P256_ALGORITHM, NodeProfile, pem_of, signing_key_hash
from genkd.provenance.record import TypedMessage
from genkd.provenance.secp256k1 import address_of, sign_digest
from genkd.provenance.typed_data import Domain


class NodeKeys:
    """A node's two private keys, unlocked. Prints as its address and cannot be pickled.

    Args:
        secret: The Ethereum private key.
        signing_key: The P-256 private key.
        profile: What both signed about each other.

    Raises:
        KeyOrSignatureError: If the keys are not the ones of the profile.
    """

    def __init__(
        self, secret: int, signing_key: ec.EllipticCurvePrivateKey, profile: NodeProfile
    ) -> None:
        same = signing_key_hash(pem_of(signing_key.public_key())) == profile.message.signing_key
        if address_of(secret) != profile.node or not same:
            raise KeyOrSignatureError(
                f"the keys of {profile.node} are not the ones of its profile",
                hint="restore the key folder from a backup",
            )
        self._secret = secret
        self._signing_key = signing_key
        self.profile = profile

    @property
    def address(self) -> str:
        """The node's address."""
        return self.profile.node

    def sign(self, message: TypedMessage, domain: Domain) -> bytes:
        """The Ethereum key's signature over a typed message, 65 bytes."""
        return sign_digest(self._secret, message.digest(domain))

    def sign_digest(self, digest: bytes) -> bytes:
        """The Ethereum key's signature over 32 bytes, such as a transaction's hash; 65 bytes."""
        return sign_digest(self._secret, digest)

    def sign_artifact(self, data: bytes) -> bytes:
        """The P-256 key's signature over bytes: ECDSA with SHA-256, ASN.1 DER."""
        return self._signing_key.sign(data, P256_ALGORITHM)

    def __repr__(self) -> str:
        return f"NodeKeys({self.address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys cannot be pickled")

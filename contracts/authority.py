"""A coordinator's certificate authority as both sides name it: by its fingerprint.

    authority = read_authority(pem)             # exactly one certificate, of an authority
    fingerprint_of(authority)                   # 64 lower-case digits: SHA-256 of its DER

The fingerprint is what a person carries from the coordinator to a node, by telephone or on paper;
everything else follows from it.
"""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from genkd.errors import InputFileRefused, UsageError

MAX_AUTHORITY_BYTES = 16 * 1024
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
PEM = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----\s*"
)


def read_authority(pem: bytes) -> x509.Certificate:
    """The one certificate in a PEM text from somebody else.

    Text with a second certificate is refused: whoever loaded it all would trust that one too.

    Raises:
        InputFileRefused: If it is anything but one certificate of a certificate authority.
    """
    if len(pem) > MAX_AUTHORITY_BYTES or not PEM.fullmatch(pem):
        raise _bad("it is not exactly one PEM certificate")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (
        *(ValueError, x509.ExtensionNotFound, x509.DuplicateExtension),
        *(x509.InvalidVersion, x509.UnsupportedGeneralNameType),
    ) as error:
        raise _bad("it is no certificate of an authority") from error
    if not constraints.value.ca:
        raise _bad("it is no certificate of an authority")
    return certificate


def authority_pem(authority: x509.Certificate) -> bytes:
    """The certificate as PEM, in one spelling."""
    return authority.public_bytes(Encoding.PEM)


def fingerprint_of(authority: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER, 64 lower-case digits."""
    return authority.fingerprint(hashes.SHA256()).hex()


def parse_fingerprint(text: str) -> str:
    """A fingerprint as people and tools write it: with colons, in capitals, after `sha256:`.

    Raises:
        UsageError: If it is none.
    """
    digits = text.strip().lower().removeprefix("sha256:").replace(":", "").replace(" ", "")
    if not FINGERPRINT.fullmatch(digits):
        raise UsageError(
            f"{text[:100]!a} is not the fingerprint of a certificate authority",
            hint="it has 64 hexadecimal digits; 'genkd-coordinator init' and 'serve' show it",
        )
    return digits


def _bad(reason: str) -> InputFileRefused:
    return InputFileRefused(
        f"the certificate of the coordinator's authority is not usable: {reason}",
        hint="check that this is the coordinator's address",
    )

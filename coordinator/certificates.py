"""The coordinator's certificate authority, and the certificate of its server.

    authority = Authority.create(federation)            # or found there, as it is
    authority.issue(["federation.example", "10.0.0.7"])
    authority.renew(now)                                # True if less than 30 days were left
    authority.fingerprint

The folder holds `ca.pem`, `ca.key`, `server.pem` and `server.key`; the keys are P-256, 0600, never
sent, and not encrypted, for the server starts with nobody there. Nodes trust the authority by its
fingerprint, so it stays for ten years, and the server's certificate is renewed under it, with
another key, by `serve`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contracts.authority import authority_pem, fingerprint_of, read_authority
from genkd.durable import atomic_write, unwritable
from genkd.errors import ConfigurationError, GenKDError, KeyOrSignatureError, UsageError
from genkd.provenance.passphrase import require_private

AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca.key"
SERVER, SERVER_KEY = "server.pem", "server.key"
AUTHORITY_VALIDITY: Final = timedelta(days=3650)
SERVER_VALIDITY: Final = timedelta(days=398)  # what all TLS clients accept
RENEWED_BEFORE: Final = timedelta(days=30)
CLOCK_SKEW: Final = timedelta(days=1)  # of a node whose clock is behind
# A machine's own names: so that programs on it reach the server by them.
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
MAX_FILE_BYTES = 64 * 1024
MAX_NAMES = 64
# RFC 1123, section 2.1: letters, digits and hyphens; a wildcard is no name of a host.
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a federation's folder.

    Attributes:
        folder: Where its files lie.
        certificate: Its own certificate.
    """

    folder: Path
    certificate: x509.Certificate

    @classmethod
    def create(cls, folder: Path) -> Authority:
        """Make the authority, or find the one that is there. It is never overwritten.

        Raises:
            ConfigurationError, KeyOrSignatureError: As `open`, for the one that is there.
            ResourceExhausted: If the folder cannot be written.
        """
        if (folder / AUTHORITY).exists():
            return cls.open(folder)
        make_private_folder(folder)
        # The key first: a kill between the two leaves a key that nobody has seen, made anew.
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, datetime.now(UTC))
        _write_key(folder / AUTHORITY_KEY, key)
        atomic_write(folder / AUTHORITY, authority_pem(certificate))
        return cls(folder, certificate)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The authority in a folder.

        Raises:
            ConfigurationError: If there is none.
            KeyOrSignatureError: If its certificate has expired.
            InputFileRefused: If its certificate is damaged.
        """
        certificate = read_authority(_read(folder / AUTHORITY))
        if certificate.not_valid_after_utc <= datetime.now(UTC):
            raise KeyOrSignatureError(
                f"the authority in {folder} expired on {certificate.not_valid_after_utc:%Y-%m-%d}",
                hint="check this machine's clock; if it is right, make a new federation folder",
            )
        return cls(folder, certificate)

    @property
    def fingerprint(self) -> str:
        """What nodes know it by, 64 lower-case digits."""
        return fingerprint_of(self.certificate)

    @property
    def server_certificate(self) -> x509.Certificate | None:
        """The server's certificate in force, None if none was issued."""
        path = self.folder / SERVER
        if not path.exists():
            return None
        try:
            return x509.load_pem_x509_certificate(_read(path))
        except ValueError as error:
            raise ConfigurationError(
                f"{path} is no certificate",
                hint="delete it and run 'genkd-coordinator init --host NAME'",
            ) from error

    def server_names(self) -> list[str]:
        """The names and addresses that the server's certificate holds; none if there is none."""
        certificate = self.server_certificate
        if certificate is None:
            return []
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return [str(name.value) for name in extension.value]

    def issue(self, names: Sequence[str]) -> x509.Certificate:
        """Issue the server's certificate, with a new key, in place of any other.

        Args:
            names: Host names and IP addresses by which nodes reach the server. Those of this
                machine to itself are added.

        Raises:
            UsageError: If a name is none.
            KeyOrSignatureError: If the authority's key is not there, open to others, or another's.
            ResourceExhausted: If the folder cannot be written.
        """
        alternative = parse_names(names)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(key.public_key(), alternative, datetime.now(UTC))
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        # Two files cannot be replaced at once. A server that starts in between does not start, and
        # `renew` sees it.
        _write_key(self.folder / SERVER_KEY, key)
        atomic_write(self.folder / SERVER, pem)
        return certificate

    def renew(self, now: datetime) -> bool:
        """Issue the server's certificate again, for the same names, if it is soon to expire.

        Also if it does not belong to its key or to this authority, which an interruption, or a
        folder put together by hand, can leave.

        Args:
            now: With a time zone.

        Returns:
            Whether it was issued again.

        Raises:
            ConfigurationError: If none was ever issued.
            KeyOrSignatureError, ResourceExhausted: As `issue`.
        """
        certificate = self.server_certificate
        if certificate is None:
            raise ConfigurationError(
                f"{self.folder} has no server certificate",
                hint="run 'genkd-coordinator init --host NAME' with the name nodes reach it by",
            )
        fits = certificate.not_valid_before_utc <= now and self._is_in_order(certificate)
        if fits and certificate.not_valid_after_utc - now >= RENEWED_BEFORE:
            return False
        self.issue(self.server_names())
        return True

    def _is_in_order(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self.certificate)
            key = _load_key(self.folder / SERVER_KEY)
        except (ValueError, TypeError, InvalidSignature, GenKDError):
            return False
        return key.public_key() == certificate.public_key()

    def _sign(
        self, public: ec.EllipticCurvePublicKey, names: list[x509.GeneralName], now: datetime
    ) -> x509.Certificate:
        key = _load_key(self.folder / AUTHORITY_KEY)
        if key.public_key() != self.certificate.public_key():
            raise KeyOrSignatureError(
                f"{self.folder / AUTHORITY_KEY} is not the key of {self.folder / AUTHORITY}",
                hint="restore both from one backup",
            )
        end = min(now + SERVER_VALIDITY, self.certificate.not_valid_after_utc)
        issuer = self.certificate.public_key()
        return (
            _builder(_named("GenKD coordinator"), self.certificate.subject, public, now, end)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer),  # type: ignore[arg-type]
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )


def default_names() -> list[str]:
    """What this machine calls itself, as far as that can be a host name."""
    name = socket.gethostname()
    return [name] if _is_host_name(name) else []


def parse_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """Host names and IP addresses as a certificate holds them, those of loopback added.

    Raises:
        UsageError: If one is neither, or there are too many.
    """
    found = [_general_name(name) for name in [*names, *LOOPBACK_NAMES]]
    if len(found) > MAX_NAMES:
        raise UsageError(f"a certificate holds at most {MAX_NAMES} names", hint="name fewer hosts")
    return list(dict.fromkeys(found))


def _general_name(name: str) -> x509.GeneralName:
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        if _is_host_name(name):
            return x509.DNSName(name.lower())
        raise UsageError(
            f"{name[:80]!a} is neither a host name nor an IP address",
            hint="give the bare name, such as federation.example: no scheme, port or wildcard",
        ) from None
    if address.is_unspecified or address.is_multicast or getattr(address, "scope_id", None):
        raise UsageError(
            f"nodes cannot reach {address}",
            hint="name the address by which they reach this machine",
        )
    return x509.IPAddress(address)


def _is_host_name(name: str) -> bool:
    """Whether it is a DNS name; digits and dots alone are a misspelt address."""
    labels = name.split(".")
    return (
        len(name) <= 253
        and all(LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdecimal()
    )


def _self_signed(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = _named("GenKD federation")
    return (
        _builder(name, name, key.public_key(), now, now + AUTHORITY_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def make_private_folder(folder: Path) -> None:
    """A folder that only this user can enter.

    Raises:
        ResourceExhausted: If it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    atomic_write(path, data, mode=0o600)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    require_private(path)
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:
        raise KeyOrSignatureError(f"{path} is damaged", hint="restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyOrSignatureError(f"{path} is another kind of key", hint="restore the backup")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no {path}", hint="run 'genkd-coordinator init --host NAME' first"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", hint="check its owner and permissions"
        ) from error

"""The authority and its server's certificate: names, validity, renewal, who can read the keys."""

from __future__ import annotations

import hashlib
import ipaddress
import shutil
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from contracts.authority import (
    MAX_AUTHORITY_BYTES,
    authority_pem,
    fingerprint_of,
    parse_fingerprint,
    read_authority,
)
from coordinator import certificates
from coordinator.certificates import RENEWED_BEFORE, Authority
from genkd.errors import (
    ConfigurationError,
    GenKDError,
    InputFileRefused,
    KeyOrSignatureError,
    UsageError,
)

NAMES = ["federation.example", "10.0.0.7", "2001:db8::7"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority.create(tmp_path / "federation")
    authority.issue(NAMES)
    return authority


def test_the_certificate_is_for_each_name_and_for_this_machine(authority: Authority) -> None:
    extension = x509.SubjectAlternativeName
    names = authority.server_certificate.extensions.get_extension_for_class(extension).value  # type: ignore[union-attr]
    assert names.get_values_for_type(x509.DNSName) == ["federation.example", "localhost"]
    addresses = ["10.0.0.7", "2001:db8::7", "127.0.0.1", "::1"]
    assert names.get_values_for_type(x509.IPAddress) == [*map(ipaddress.ip_address, addresses)]
    assert authority.server_names()[0] == "federation.example"


@pytest.mark.parametrize("name", [*NAMES, "localhost", "127.0.0.1", "::1"])
def test_a_strict_client_that_trusts_only_the_authority_accepts_it(
    authority: Authority, name: str
) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    client.load_verify_locations(authority.folder / "ca.pem")
    assert handshake(authority, client, name) is None


@pytest.mark.parametrize("name", ["example", "x.federation.example", "10.0.0.8"])
def test_it_is_for_no_other_name(authority: Authority, name: str) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(authority.folder / "ca.pem")
    assert handshake(authority, client, name) is not None


def handshake(authority: Authority, client: ssl.SSLContext, name: str) -> ssl.SSLError | None:
    """A TLS handshake in memory; what the client objects to."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority.folder / "server.pem", authority.folder / "server.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = client.wrap_bio(to_client, to_server, server_hostname=name)
    here = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (there, here):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return error
    return None


def test_keys_are_for_their_owner_only(authority: Authority) -> None:
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((authority.folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700


def test_the_fingerprint_is_the_sha256_of_the_der(authority: Authority) -> None:
    der = authority.certificate.public_bytes(Encoding.DER)
    assert authority.fingerprint == hashlib.sha256(der).hexdigest()


def test_an_authority_that_is_there_is_never_made_again(authority: Authority) -> None:
    before = {path.name: path.read_bytes() for path in authority.folder.iterdir()}
    again = Authority.create(authority.folder)
    assert again.fingerprint == authority.fingerprint
    assert {path.name: path.read_bytes() for path in authority.folder.iterdir()} == before


def test_a_kill_between_the_authoritys_two_files_is_made_good(tmp_path: Path) -> None:
    (tmp_path / "ca.key").write_bytes(b"of a certificate that was never written")
    authority = Authority.create(tmp_path)
    authority.issue(NAMES)
    assert Authority.open(tmp_path).fingerprint == authority.fingerprint


@pytest.mark.parametrize(
    ("days_left", "renewed"), [(365, False), (31, False), (29, True), (-400, True)]
)
def test_the_server_certificate_is_renewed_before_it_expires(
    authority: Authority, days_left: int, renewed: bool
) -> None:
    before, names = authority.server_certificate, authority.server_names()
    assert before is not None
    now = before.not_valid_after_utc - timedelta(days=days_left)
    assert authority.renew(now) is renewed
    assert (authority.server_certificate != before) is renewed
    assert authority.server_names() == names
    assert Authority.open(authority.folder).fingerprint == authority.fingerprint


def test_a_renewed_certificate_has_another_key_and_holds_for_a_year(authority: Authority) -> None:
    before = authority.server_certificate
    assert before is not None
    authority.renew(before.not_valid_after_utc)
    after = authority.server_certificate
    assert after is not None
    assert after.public_key() != before.public_key()
    assert after.not_valid_after_utc - datetime.now(UTC) > timedelta(days=365)


def test_a_certificate_is_valid_on_a_machine_whose_clock_is_behind(authority: Authority) -> None:
    hours_ago = datetime.now(UTC) - timedelta(hours=20)
    certificate = authority.server_certificate
    assert certificate is not None
    assert certificate.not_valid_before_utc < hours_ago
    assert authority.certificate.not_valid_before_utc < hours_ago


@pytest.mark.parametrize("lost", ["server.key", "key of another", "certificate of another"])
def test_a_certificate_that_does_not_fit_its_key_is_issued_again(
    lost: str, authority: Authority, tmp_path: Path
) -> None:
    """As a kill between the two files leaves it, or a folder put together by hand."""
    other = Authority.create(tmp_path / "other")
    other.issue(NAMES)
    if lost == "server.key":
        (authority.folder / "server.key").unlink()
    elif lost == "key of another":
        shutil.copy(other.folder / "server.key", authority.folder)
    else:
        shutil.copy(other.folder / "server.key", authority.folder)
        shutil.copy(other.folder / "server.pem", authority.folder)
    assert authority.renew(datetime.now(UTC)) is True
    assert authority.renew(datetime.now(UTC)) is False


def test_a_federation_without_a_certificate_is_told_to_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as missing:
        Authority.open(tmp_path)
    assert "init" in missing.value.hint
    with pytest.raises(ConfigurationError):
        Authority.create(tmp_path).renew(datetime.now(UTC))


def test_an_expired_authority_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "AUTHORITY_VALIDITY", timedelta(seconds=-1))
    Authority.create(tmp_path)
    with pytest.raises(KeyOrSignatureError, match="expired"):
        Authority.open(tmp_path)


def test_a_server_certificate_ends_with_its_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "AUTHORITY_VALIDITY", RENEWED_BEFORE)
    authority = Authority.create(tmp_path)
    assert authority.issue(NAMES).not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_an_authoritys_key_that_others_can_read_is_not_used(authority: Authority) -> None:
    (authority.folder / "ca.key").chmod(0o640)
    with pytest.raises(KeyOrSignatureError, match="other users"):
        authority.issue(NAMES)


def test_an_authoritys_key_of_another_is_not_used(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other")
    shutil.copy(other.folder / "ca.key", authority.folder)
    with pytest.raises(KeyOrSignatureError, match="is not the key of"):
        authority.issue(NAMES)


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "*.example", "https://x.example", "x.example:9092", "a b", "-a.example"),
        *("1.2.3", "999.1.1.1", "0.0.0.0", "::", "224.0.0.1", "fe80::1%eth0", "ä.example"),  # noqa: S104
        *("x" * 64 + ".example", "a." * 130, "a..b", "a\n", "../x", "a_b"),
    ],
)
def test_what_nodes_cannot_reach_a_server_by_is_refused(authority: Authority, name: str) -> None:
    before = authority.server_certificate
    with pytest.raises(UsageError):
        authority.issue([name])
    assert authority.server_certificate == before


def test_too_many_names_are_refused(authority: Authority) -> None:
    with pytest.raises(UsageError):
        authority.issue([f"n{number}.example" for number in range(100)])


# --- the authority as a node reads it ---


def test_an_authority_is_read_as_it_is_written(authority: Authority) -> None:
    pem = (authority.folder / "ca.pem").read_bytes()
    assert authority_pem(read_authority(pem)) == pem
    assert fingerprint_of(read_authority(pem)) == authority.fingerprint


def test_a_second_certificate_is_not_smuggled_in_behind_the_first(
    authority: Authority, tmp_path: Path
) -> None:
    """Its fingerprint would be checked, and both be trusted."""
    other = authority_pem(Authority.create(tmp_path / "other").certificate)
    for text in (authority_pem(authority.certificate) + other, b"# \n" + other):
        with pytest.raises(InputFileRefused):
            read_authority(text)


@pytest.mark.parametrize(
    "kind", ["server.pem", "server.key", "nothing", "half", "huge", "text", "empty"]
)
def test_what_is_no_authority_is_refused(kind: str, authority: Authority) -> None:
    pem = authority_pem(authority.certificate)
    made = {
        "nothing": b"",
        "half": pem[: len(pem) // 2],
        "huge": pem + b"\n" * MAX_AUTHORITY_BYTES,
        "text": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "empty": b"-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n",
    }
    data = made[kind] if kind in made else (authority.folder / kind).read_bytes()
    with pytest.raises(InputFileRefused):
        read_authority(data)


def test_a_fingerprint_is_read_however_tools_write_it() -> None:
    digits = "0a" * 32
    spaced = " ".join(["0A"] * 32)
    colons = ":".join(["0A"] * 32)
    for text in (digits, digits.upper(), f"sha256:{digits}", colons, spaced, f" {digits}\n"):
        assert parse_fingerprint(text) == digits


@pytest.mark.parametrize(
    "text", ["", "0a" * 31, "0a" * 33, "0g" * 32, "\u0660" * 64, "md5:" + "0a" * 32]
)
def test_what_is_no_fingerprint_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_fingerprint(text)


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "server.pem"])
def test_damaged_files_are_named(authority: Authority, name: str) -> None:
    (authority.folder / name).write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(GenKDError):
        Authority.open(authority.folder).renew(datetime.now(UTC) + timedelta(days=390))

"""A node asks to be let in: what it believes, what it refuses, and what it says to whom."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.authority import authority_pem
from contracts.enrolment import FederationCard, JoinAnswer
from coordinator import certificates
from coordinator.certificates import Authority
from coordinator.joins import LetIn
from genkd.errors import (
    ConfigurationError,
    CoordinatorUnreachable,
    GenKDError,
    InputFileRefused,
    KeyOrSignatureError,
    RefusedByPolicy,
    ResourceExhausted,
    Stopped,
    UsageError,
)
from node.enrolment import ask_state, enrol, parse_coordinator
from tests.coordinator.enrolment_server import (
    CARD,
    Served,
    authority_in,
    behaving,
    keys_of,
    read_request,
    serving,
    supernode_key,
)

ALICE = keys_of(0xA11CE)
KEY = supernode_key()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "federation") as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "membership"
    made.mkdir()
    return made


def join(served: Any, folder: Path, *, fingerprint: str | None = None, **values: Any) -> JoinAnswer:
    address = served if isinstance(served, str) else served.address
    digits = fingerprint or served.fingerprint
    return enrol(address, digits, ALICE.profile, ALICE, KEY, folder, **values)


def test_a_node_joins_with_an_address_and_a_fingerprint(served: Served, folder: Path) -> None:
    assert join(served, folder) == JoinAnswer("pending")
    assert (folder / "ca.pem").read_bytes() == authority_pem(served.authority.certificate)
    assert FederationCard.from_bytes((folder / "federation.json").read_bytes()) == CARD
    request = served.joins.all()[0].request
    assert request is not None
    assert request.profile == ALICE.profile
    assert ask_state(served.address, folder, ALICE.address) == JoinAnswer("pending")


def test_it_learns_that_it_is_admitted_or_refused(served: Served, folder: Path) -> None:
    join(served, folder)
    request = served.joins.decide(ALICE.address, "admitted").request
    assert request is not None
    served.joins.let_in(ALICE.address, LetIn(request.supernode_key, 7))
    assert ask_state(served.address, folder, ALICE.address).state == "admitted"
    assert join(served, folder).state == "admitted"
    served.joins.decide(ALICE.address, "refused", "not you")
    assert ask_state(served.address, folder, ALICE.address) == JoinAnswer("refused", "not you")


def test_a_request_that_was_dropped_is_to_be_made_again(served: Served, folder: Path) -> None:
    join(served, folder)
    (served.joins.folder / f"{ALICE.address}.json").unlink()
    with pytest.raises(Stopped, match="no request"):
        ask_state(served.address, folder, ALICE.address)


@pytest.mark.parametrize("write", [str.upper, lambda digits: f"sha256:{digits}"])
def test_the_fingerprint_may_be_written_as_tools_do(
    served: Served, folder: Path, write: Callable[[str], str]
) -> None:
    assert join(served, folder, fingerprint=write(served.fingerprint)).state == "pending"


def test_ipv6_and_host_names_are_addresses_too(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path / "six", host="::1") as served:
        assert join(served, folder).state == "pending"
    with serving(tmp_path / "six") as served:
        address = served.address.replace("127.0.0.1", "localhost")
        assert join(address, folder, fingerprint=served.fingerprint).state == "pending"


# --- who answers is not who is meant ---


def test_another_fingerprint_is_refused_and_nothing_is_sent(served: Served, folder: Path) -> None:
    with pytest.raises(KeyOrSignatureError) as refused:
        join(served, folder, fingerprint="0" * 64)
    assert served.fingerprint in refused.value.message
    assert "telephone" in refused.value.hint
    assert list(folder.iterdir()) == []
    assert served.joins.all() == []


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_man_in_the_middle_who_shows_the_right_certificate_learns_nothing(
    tmp_path: Path, folder: Path
) -> None:
    """The authority's certificate is public: he can show it, and not prove himself by it."""
    real = authority_in(tmp_path / "real")
    his = authority_in(tmp_path / "his")
    heard: list[bytes] = []

    def respond(connection: Any) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(answer(authority_pem(real.certificate)))

    with (
        behaving(respond, his.folder / "server.pem", his.folder / "server.key") as address,
        pytest.raises(KeyOrSignatureError, match="does not prove itself"),
    ):
        join(address, folder, fingerprint=real.fingerprint)
    assert len(heard) == 1
    assert heard[0].startswith(b"GET /genkd/ca.pem ")
    assert ALICE.address.encode() not in heard[0]
    assert list(folder.iterdir()) == []


def test_a_second_certificate_behind_the_right_one_is_not_believed(
    tmp_path: Path, folder: Path
) -> None:
    real, his = authority_in(tmp_path / "real"), authority_in(tmp_path / "his")
    both = authority_pem(real.certificate) + authority_pem(his.certificate)
    with (
        behaving(
            lambda c: (c.recv(65536), c.sendall(answer(both))),
            his.folder / "server.pem",
            his.folder / "server.key",
        ) as address,
        pytest.raises(InputFileRefused),
    ):
        join(address, folder, fingerprint=real.fingerprint)
    assert list(folder.iterdir()) == []


def test_after_the_first_contact_nobody_is_asked_without_proof(
    tmp_path: Path, folder: Path
) -> None:
    with serving(tmp_path / "federation") as served:
        join(served, folder)
    his = authority_in(tmp_path / "his")
    heard: list[bytes] = []
    with behaving(
        lambda c: heard.append(c.recv(65536)), his.folder / "server.pem", his.folder / "server.key"
    ) as address:
        for ask in (
            lambda: join(address, folder, fingerprint=served.fingerprint),
            lambda: ask_state(address, folder, ALICE.address),
        ):
            with pytest.raises(KeyOrSignatureError, match="does not prove itself"):
                ask()
    assert [data for data in heard if data] == []


def test_a_membership_of_another_federation_is_not_overwritten(
    served: Served, folder: Path, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other")
    (folder / "ca.pem").write_bytes(authority_pem(other.certificate))
    with pytest.raises(ConfigurationError, match=other.fingerprint):
        join(served, folder)
    assert served.joins.all() == []


def test_a_certificate_for_another_name_is_refused_with_what_to_do(
    served: Served, folder: Path
) -> None:
    with (
        serving(served.joins.folder.parent, host="127.0.0.2") as elsewhere,
        pytest.raises(KeyOrSignatureError, match=r"not for 127\.0\.0\.2") as refused,
    ):
        join(elsewhere, folder)
    assert "init --host 127.0.0.2" in refused.value.hint


@pytest.mark.parametrize("kind", ["expired", "not yet valid"])
def test_a_certificate_out_of_its_time_blames_the_clock(
    kind: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = timedelta(days=-400 if kind == "expired" else 400)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + moment

    authority = Authority.create(tmp_path / "federation")
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "datetime", Clock)
        patch.setattr(certificates, "CLOCK_SKEW", timedelta(0))
        authority.issue(["localhost"])
    pem, key = authority.folder / "server.pem", authority.folder / "server.key"
    shown = answer(authority_pem(authority.certificate))
    with (
        behaving(lambda c: (c.recv(65536), c.sendall(shown)), pem, key) as address,
        pytest.raises(KeyOrSignatureError, match="clock") as refused,
    ):
        join(address, folder, fingerprint=authority.fingerprint)
    assert ("expired" in refused.value.message) is (kind == "expired")
    assert authority.renew(datetime.now(UTC)) is True


# --- who answers is no coordinator, or a hostile one ---


def unreachable() -> str:
    with behaving(lambda c: None) as address:
        return address


def test_nobody_there_is_said(folder: Path) -> None:
    with pytest.raises(CoordinatorUnreachable, match="refused"):
        join(unreachable(), folder, fingerprint="0" * 64)


def test_an_unknown_host_is_said(folder: Path) -> None:
    with pytest.raises(CoordinatorUnreachable):
        join("no-such-host.invalid:9092", folder, fingerprint="0" * 64)


def drip(connection: Any) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def drip_headers(connection: Any) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x: y\r\n")
        time.sleep(0.05)


def go_on_for_ever(connection: Any) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def flood(connection: Any) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


HOSTILE: dict[str, Any] = {
    "silent": lambda c: time.sleep(5),
    "a byte at a time": drip,
    "headers without end": drip_headers,
    "continue without end": go_on_for_ever,
    "a flood": flood,
    "hangs up": lambda c: None,
    "no HTTP": lambda c: c.sendall(b"220 mail.example ESMTP\r\n"),
    "a long header": lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000),
    "many headers": lambda c: c.sendall(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000 + b"\r\n"),
    "a redirect": lambda c: c.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    ),
    "not found": lambda c: c.sendall(answer(b"", "404 Not Found")),
    "broken": lambda c: c.sendall(answer(b"{}", "500 Oops")),
    "a bad chunk": lambda c: c.sendall(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    ),
    "cut short": lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"),
    "no certificate": lambda c: c.sendall(answer(b"hello")),
}


@pytest.mark.parametrize("respond", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_server_costs_no_more_than_the_timeout(
    respond: Any, tmp_path: Path, folder: Path
) -> None:
    authority = authority_in(tmp_path / "his")

    def after_the_question(connection: Any) -> None:
        connection.recv(65536)
        respond(connection)

    pem, key = authority.folder / "server.pem", authority.folder / "server.key"
    with behaving(after_the_question, pem, key) as address:
        start = time.monotonic()
        with pytest.raises((CoordinatorUnreachable, InputFileRefused)):
            join(address, folder, fingerprint=authority.fingerprint, timeout=1.0)
        assert time.monotonic() - start < 4
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("respond", ["silent", "no HTTP", "hangs up"])
def test_a_server_without_tls_is_said(respond: str, folder: Path) -> None:
    with behaving(HOSTILE[respond]) as address, pytest.raises(CoordinatorUnreachable):
        join(address, folder, fingerprint="0" * 64, timeout=1.0)


def scripted(authority: Authority, **bodies: bytes) -> Callable[[Any], None]:
    """A coordinator of the right authority that answers each path with given bytes."""

    def respond(connection: Any) -> None:
        line = read_request(connection).partition("\r\n")[0]
        if "ca.pem" in line:
            data = answer(authority_pem(authority.certificate))
        elif "federation.json" in line:
            data = bodies.get("card", answer(CARD.to_bytes()))
        else:
            data = bodies["join"]
        connection.sendall(data)

    return respond


def error_body(text: str) -> bytes:
    return json.dumps({"error": text}).encode()


CASES: dict[str, tuple[dict[str, bytes], type[GenKDError]]] = {
    "a card of another protocol": (
        {"card": answer(CARD.to_bytes().replace(b'"protocol":1', b'"protocol":2'))},
        InputFileRefused,
    ),
    "a card that is none": ({"card": answer(b"[" * 60_000)}, InputFileRefused),
    "a huge card": ({"card": answer(b" " * 1_000_000)}, CoordinatorUnreachable),
    "an answer that is none": ({"join": answer(b"{}")}, InputFileRefused),
    "a huge answer": ({"join": answer(b" " * 100_000)}, CoordinatorUnreachable),
    "a refusal": ({"join": answer(error_body("no"), "403 Forbidden")}, RefusedByPolicy),
    "busy": ({"join": answer(error_body("later"), "503 Busy")}, CoordinatorUnreachable),
    "too often": ({"join": answer(b"", "429 Too Many")}, CoordinatorUnreachable),
    "a refusal without a reason": ({"join": answer(b"\xff", "400 Bad")}, RefusedByPolicy),
}


@pytest.mark.parametrize(("bodies", "kind"), CASES.values(), ids=CASES)
def test_each_answer_that_is_no_answer_ends_in_its_error(
    bodies: dict[str, bytes], kind: type[GenKDError], tmp_path: Path, folder: Path
) -> None:
    authority = authority_in(tmp_path / "federation")
    pem, key = authority.folder / "server.pem", authority.folder / "server.key"
    with behaving(scripted(authority, **bodies), pem, key) as address, pytest.raises(kind):
        join(address, folder, fingerprint=authority.fingerprint, timeout=5.0)


def test_a_reason_is_shown_short_and_without_control_characters(
    tmp_path: Path, folder: Path
) -> None:
    authority = authority_in(tmp_path / "federation")
    pem, key = authority.folder / "server.pem", authority.folder / "server.key"
    hostile = answer(error_body("\x1b[2Jyou are in\n" + "x" * 3000), "403 Forbidden")
    with (
        behaving(scripted(authority, join=hostile), pem, key) as address,
        pytest.raises(RefusedByPolicy) as refused,
    ):
        join(address, folder, fingerprint=authority.fingerprint)
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 300


# --- arguments and files ---


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("federation.example:9092", ("federation.example", 9092)),
        ("https://10.0.0.7:443/", ("10.0.0.7", 443)),
        (" [2001:db8::7]:1 ", ("2001:db8::7", 1)),
    ],
)
def test_an_address_of_a_coordinator(text: str, parsed: tuple[str, int]) -> None:
    assert parse_coordinator(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", ":9092", "x:", "x:0", "x:65536", "x:99999999999", "x:-1", "x:9a", "x: 9"),
        *("2001:db8::7:9092", "[x:9", "a b:9", "a@b:9", "http://x:9", "x/y:9", "x\r\ny:9", "ä:9"),
    ],
)
def test_what_is_no_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_coordinator(text)


def test_no_fingerprint_is_a_usage_error(served: Served, folder: Path) -> None:
    with pytest.raises(UsageError):
        join(served, folder, fingerprint="abc")


def test_a_profile_of_other_keys_is_not_sent(served: Served, folder: Path) -> None:
    with pytest.raises(KeyOrSignatureError):
        enrol(served.address, served.fingerprint, keys_of(7).profile, ALICE, KEY, folder)
    assert served.joins.all() == []


def test_a_folder_that_is_gone_is_said(served: Served, tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted):
        join(served, tmp_path / "nowhere")


def test_asking_without_a_membership_says_to_join(served: Served, folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no .*ca\.pem"):
        ask_state(served.address, folder, ALICE.address)


def test_a_damaged_authority_in_the_membership_is_named(served: Served, folder: Path) -> None:
    (folder / "ca.pem").write_bytes(b"-----BEGIN")
    for ask in (
        lambda: join(served, folder),
        lambda: ask_state(served.address, folder, ALICE.address),
    ):
        with pytest.raises(ConfigurationError, match=r"ca\.pem is damaged"):
            ask()


def test_a_proxy_of_the_environment_is_not_used(
    served: Served, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert join(served, folder).state == "pending"


def test_what_the_machine_trusts_otherwise_does_not_count(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, his = authority_in(tmp_path / "real"), authority_in(tmp_path / "his")
    monkeypatch.setenv("SSL_CERT_FILE", str(his.folder / "ca.pem"))
    (folder / "ca.pem").write_bytes(authority_pem(real.certificate))
    pem, key = his.folder / "server.pem", his.folder / "server.key"
    with (
        behaving(lambda c: None, pem, key) as address,
        pytest.raises(KeyOrSignatureError),
    ):
        ask_state(address, folder, ALICE.address)


def test_no_thread_is_left_behind_by_a_silent_server(tmp_path: Path, folder: Path) -> None:
    authority = authority_in(tmp_path / "his")
    pem, key = authority.folder / "server.pem", authority.folder / "server.key"
    with (
        behaving(lambda c: time.sleep(3), pem, key) as address,
        pytest.raises(CoordinatorUnreachable),
    ):
        join(address, folder, fingerprint=authority.fingerprint, timeout=0.5)
    deadline = time.monotonic() + 5
    while any(t.name == "enrolment" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)

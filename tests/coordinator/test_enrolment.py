"""What strangers can ask a coordinator, and what they cannot."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contracts.enrolment import MAX_REQUEST_BYTES, JoinRequest
from coordinator import enrolment
from coordinator import joins as joins_module
from coordinator.certificates import Authority
from coordinator.enrolment import enrolment_app
from coordinator.joins import Joins
from genkd.canonical import canonical_json
from genkd.errors import ConfigurationError
from tests.coordinator.enrolment_server import CARD, authority_in, keys_of, supernode_key

ALICE, MALLORY = keys_of(0xA11CE), keys_of(0xBAD)


@dataclass
class Response:
    status: int
    body: bytes
    headers: dict[bytes, bytes]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Stranger:
    """Asks the application without a socket."""

    def __init__(self, folder: Path) -> None:
        self.authority: Authority = authority_in(folder)
        self.joins = Joins(folder)
        self.card: Callable[[], Any] = lambda: CARD
        self.app = enrolment_app(self.authority, self.joins, lambda: self.card())
        self.sent: list[bytes] = []

    def request(self, keys: Any = ALICE) -> JoinRequest:
        authority = bytes.fromhex(self.authority.fingerprint)
        return JoinRequest.make(keys, supernode_key(), CARD.domain, authority)

    async def ask_async(
        self,
        method: str,
        path: str,
        body: bytes | list[bytes] = b"",
        *,
        headers: list[tuple[bytes, bytes]] | None = None,
        source: str | None = "10.0.0.1",
        silent: bool = False,
    ) -> Response:
        parts = [body] if isinstance(body, bytes) else list(body)
        sent: list[Any] = []

        async def receive() -> Any:
            if not parts:
                if silent:
                    await asyncio.sleep(3600)
                return {"type": "http.disconnect"}
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts) or silent}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
        scope["client"] = (source, 4711) if source else None
        await self.app(scope, receive, send)
        start, end = sent
        self.sent.append(end["body"])
        return Response(start["status"], end["body"], dict(start["headers"]))

    def ask(self, *arguments: Any, **values: Any) -> Response:
        return asyncio.run(self.ask_async(*arguments, **values))

    def join(self, request: JoinRequest, **values: Any) -> Response:
        return self.ask("POST", "/genkd/join", request.to_bytes(), **values)


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    """Also: no answer of a test ever held a private key."""
    made = Stranger(tmp_path)
    yield made
    secrets = [(tmp_path / name).read_bytes() for name in ("ca.key", "server.key")]
    for body in made.sent:
        assert b"PRIVATE KEY" not in body
        assert not any(secret in body for secret in secrets)


def test_the_authority_the_card_and_the_state_of_a_join_can_be_read(stranger: Stranger) -> None:
    assert (
        stranger.ask("GET", "/genkd/ca.pem").body
        == (stranger.authority.folder / "ca.pem").read_bytes()
    )
    assert stranger.ask("GET", "/genkd/federation.json").body == CARD.to_bytes()
    assert stranger.join(stranger.request()).json["state"] == "pending"
    for address in (ALICE.address, ALICE.address.lower()):
        answer = stranger.ask("GET", f"/genkd/join/{address}")
        assert (answer.status, answer.json["state"]) == (200, "pending")
        assert set(answer.json) == {"protocol", "state", "reason"}


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/genkd/", "/genkd", "/genkd/ca.key", "/genkd/server.key", "/genkd/../ca.key"),
        *("/genkd/join/", "/genkd/join/../ca.key", "/genkd/join/0x12", "/genkd/join/.lock"),
        *("/genkd/join/" + MALLORY.address, "/genkd/join/" + ALICE.address + ".json"),
        *("/genkd/join/" + "A" * 100_000, "/genkd/ca.pem/", "/genkd/joins", "/genkd//ca.key"),
        *("/genkd/join/\x00", "/genkd/join/" + ALICE.address + "/..", "/genkd/superlink.json"),
    ],
    ids=lambda path: path[:40],
)
def test_nothing_else_is_readable(stranger: Stranger, path: str) -> None:
    answer = stranger.ask("GET", path)
    assert (answer.status, set(answer.json)) == (404, {"error"})


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/genkd/ca.pem", "/genkd/join", "/genkd/federation.json"])
def test_other_methods_are_refused(stranger: Stranger, method: str, path: str) -> None:
    assert stranger.ask(method, path).status == 405


def test_a_request_that_somebody_else_signed_is_not_kept(stranger: Stranger) -> None:
    forged = canonical_json(
        json.loads(stranger.request(MALLORY).to_bytes()) | {"profile": ALICE.profile.to_json()}
    )
    answer = stranger.ask("POST", "/genkd/join", forged)
    assert answer.status == 403
    assert stranger.joins.all() == []


def test_a_request_made_for_another_authority_is_not_kept(stranger: Stranger) -> None:
    """What a man in the middle hands on, who showed the node his own certificate."""
    carried = JoinRequest.make(ALICE, supernode_key(), CARD.domain, bytes(32))
    assert stranger.join(carried).status == 403
    assert stranger.joins.all() == []


BODIES: dict[str, bytes | list[bytes]] = {
    "nothing": b"",
    "no JSON": b"<xml/>",
    "deep": b"[" * MAX_REQUEST_BYTES,
    "an object": b"{}",
    "in many parts": [b"{", b"}"],
    "not UTF-8": b"\xff" * 100,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_malformed_request_is_refused(stranger: Stranger, body: bytes | list[bytes]) -> None:
    assert stranger.ask("POST", "/genkd/join", body).status == 400
    assert stranger.joins.all() == []


LARGE: dict[str, dict[str, Any]] = {
    "at once": {"body": b" " * (MAX_REQUEST_BYTES + 1)},
    "in parts without end": {"body": [b" " * 1000] * 1_000},
    "announced": {"headers": [(b"content-length", b"16385")]},
    "announced hugely": {"headers": [(b"Content-Length", b"9" * 4000)]},
    "announced negatively": {"headers": [(b"content-length", b"-1")]},
}


@pytest.mark.parametrize("values", LARGE.values(), ids=LARGE)
def test_a_large_body_is_refused_before_it_is_read_whole(
    stranger: Stranger, values: dict[str, Any]
) -> None:
    answer = stranger.ask("POST", "/genkd/join", **values)
    assert answer.status == 413
    assert answer.headers[b"connection"] == b"close"


def test_a_body_that_never_ends_is_given_up(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "SECONDS_FOR_A_BODY", 0.1)
    assert stranger.ask("POST", "/genkd/join", b"{", silent=True).status == 408


def test_a_source_that_asks_too_often_is_put_off_and_others_are_not(stranger: Stranger) -> None:
    statuses = [stranger.ask("POST", "/genkd/join", b"{}").status for _ in range(130)]
    assert statuses[:100] == [400] * 100
    assert statuses[-1] == 429
    assert stranger.ask("POST", "/genkd/join", b"{}", source="10.0.0.2").status == 400
    assert stranger.ask("POST", "/genkd/join", b"{}", source=None).status == 400


def test_one_host_does_not_become_many_by_its_ipv6_addresses(stranger: Stranger) -> None:
    statuses = {
        stranger.ask("POST", "/genkd/join", b"{}", source=f"2001:db8:0:7::{n:x}").status
        for n in range(130)
    }
    assert statuses == {400, 429}
    assert stranger.ask("POST", "/genkd/join", b"{}", source="2001:db8:0:8::1").status == 400


def test_how_many_sources_are_remembered_is_bounded() -> None:
    allowance = enrolment._Allowance()
    for number in range(20_000):
        assert allowance.take(str(number), 0.0)
    assert len(allowance._buckets) == enrolment.MAX_SOURCES


def test_a_source_may_ask_again_after_a_while() -> None:
    allowance = enrolment._Allowance()
    while allowance.take("a", 0.0):
        pass
    assert not allowance.take("a", 0.5)
    assert allowance.take("a", 1.5)
    assert not allowance.take("a", 1.5)
    assert allowance.take("a", 10_000.0)


def test_a_hundred_thousand_requests_leave_no_more_than_the_bound(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told with fewer: the bound is what counts, and it does not depend on how many come."""
    monkeypatch.setattr(joins_module, "MAX_UNDECIDED", 5)
    statuses = [stranger.join(stranger.request(keys_of(n))).status for n in range(1, 9)]
    assert statuses == [200] * 5 + [503] * 3
    assert len(stranger.joins.all()) == 5


def test_no_more_than_so_many_wait_for_their_signatures_to_be_checked(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "MAX_WAITING", 3)
    entered = threading.Event()

    def slowly() -> Any:
        entered.set()
        time.sleep(0.5)
        return CARD

    stranger.card = slowly
    body = stranger.request().to_bytes()

    async def many() -> list[int]:
        asked = [stranger.ask_async("POST", "/genkd/join", body) for _ in range(8)]
        return sorted(answer.status for answer in await asyncio.gather(*asked))

    assert asyncio.run(many()) == [200] * 3 + [503] * 5


def test_the_server_answers_others_while_a_signature_is_checked(stranger: Stranger) -> None:
    started, go_on = threading.Event(), threading.Event()

    def waiting() -> Any:
        started.set()
        go_on.wait(20)
        return CARD

    stranger.card = waiting
    body = stranger.request().to_bytes()

    async def both() -> tuple[int, int]:
        joining = asyncio.create_task(stranger.ask_async("POST", "/genkd/join", body))
        await asyncio.to_thread(started.wait, 20)
        other = await stranger.ask_async("GET", "/genkd/ca.pem")
        go_on.set()
        return other.status, (await joining).status

    assert asyncio.run(both()) == (200, 200)


def test_what_is_wrong_at_the_coordinator_is_not_told(stranger: Stranger) -> None:
    def broken() -> Any:
        raise ConfigurationError("/home/me/secret-folder is missing", hint="look there")

    stranger.card = broken
    answer = stranger.ask("GET", "/genkd/federation.json")
    assert answer.status == 500
    assert b"secret-folder" not in answer.body


def test_what_is_no_http_is_not_answered(stranger: Stranger) -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError("nothing is sent or received")

    for kind in ("lifespan", "websocket"):
        asyncio.run(stranger.app({"type": kind}, nothing, nothing))

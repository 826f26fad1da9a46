"""What strangers are told: an endpoint without its key, the runs, the line to join by."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.enrolment import MAX_RUNS, FederationCard
from coordinator.federation_card import endpoint_for_nodes, join_line, note_run, run_names
from coordinator.settings import Settings
from genkd.errors import ConfigurationError, UsageError
from tests.coordinator.enrolment_server import CARD, authority_in

ENDPOINTS = {
    "a host": ("https://chain.example", "https://chain.example"),
    "a host and a port": ("http://10.0.0.7:8545/", "http://10.0.0.7:8545/"),
    "a provider's key in the path": ("https://chain.example/v3/0123abcd", None),
    "a provider's key in the query": ("https://chain.example/?key=0123", None),
    "a password": ("https://me:secret@chain.example", None),
    "loopback, of which nodes have their own": ("http://127.0.0.1:8545", None),
    "loopback by name": ("http://localhost:8545", None),
    "loopback of IPv6": ("http://[::1]:8545", None),
    "none": (None, None),
    "nonsense": ("http://[", None),
}


@pytest.mark.parametrize(("own", "told"), ENDPOINTS.values(), ids=ENDPOINTS)
def test_the_endpoint_nodes_are_told_of_holds_no_secret(own: str | None, told: str | None) -> None:
    assert endpoint_for_nodes(Settings(rpc_url=own)) == told


def test_a_federation_on_one_machine_uses_its_loopback() -> None:
    settings = Settings(rpc_url="http://127.0.0.1:8545", host="127.0.0.1")
    assert endpoint_for_nodes(settings) == "http://127.0.0.1:8545"


def test_what_the_operator_says_counts() -> None:
    url = "https://public.example/v1"
    settings = Settings(rpc_url="https://own.example/secret", public_rpc_url=url)
    assert endpoint_for_nodes(settings) == url
    assert "own.example" not in repr(settings)


def test_runs_are_told_in_the_order_they_were_opened_each_once(tmp_path: Path) -> None:
    assert run_names(tmp_path) == ()
    for name in ("spring", "summer", "spring"):
        note_run(tmp_path, name)
    assert run_names(tmp_path) == ("summer", "spring")


def test_a_card_of_very_many_runs_can_still_be_read(tmp_path: Path) -> None:
    for number in range(MAX_RUNS + 5):
        note_run(tmp_path, f"{number}{chr(0x1F600) * 190}")
    names = run_names(tmp_path)
    assert len(names) == MAX_RUNS
    assert names[-1].startswith(str(MAX_RUNS + 4))
    card = FederationCard(**{**vars(CARD), "runs": names})
    assert FederationCard.from_bytes(card.to_bytes()) == card


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "\x1b[2J"])
def test_a_name_that_cannot_be_told_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        note_run(tmp_path, name)
    assert run_names(tmp_path) == ()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 1000])
def test_a_damaged_list_of_runs_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"runs\.json"):
        run_names(tmp_path)


def test_the_line_to_join_by_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    authority = authority_in(tmp_path, "federation.example")
    line = join_line(authority, 9092, "spring; rm -rf")
    assert line == (
        f"genkd-node join federation.example:9092 --ca-fingerprint {authority.fingerprint} "
        "--run 'spring; rm -rf'"
    )
    authority.issue(["2001:db8::7"])
    assert "join [2001:db8::7]:PORT " in join_line(authority, 0)

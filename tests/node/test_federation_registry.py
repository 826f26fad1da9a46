"""The node's own settings say which registry counts; the coordinator's card fills them in."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.enrolment import FederationCard
from contracts.registry_state import RegistryState
from genkd.errors import CannotCheck, ConfigurationError
from genkd.provenance.typed_data import Domain
from node.federation_registry import (
    CARD_FILE,
    domain_of_membership,
    read_card,
    registry_of_membership,
    settings_of_membership,
)
from tests.federation.memory_federation import in_memory

REGISTRY = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
OTHER = "0x" + "11" * 20
URL = "http://127.0.0.1:1"


@pytest.fixture
def membership(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        in_memory(tmp_path, patch)
    for name, value in (("HOME", "home"), ("XDG_CONFIG_HOME", "home/.config")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def write_card(membership: Path, rpc_url: str | None = URL, registry: str = REGISTRY) -> None:
    card = FederationCard(OTHER, 31337, registry, rpc_url, 3, "ab" * 32, ("spring",))
    (membership / CARD_FILE).write_bytes(card.to_bytes())


def settings(text: str) -> None:
    Path("genkd.toml").write_text(text)


def test_the_card_fills_in_what_the_settings_leave_open(membership: Path) -> None:
    write_card(membership)
    found = settings_of_membership(membership)
    assert (found.chain_id, found.registry, found.rpc_url) == (31337, REGISTRY, URL)
    assert found.confirmations == 3
    domain, registry = registry_of_membership(membership)
    assert domain == Domain(31337, REGISTRY)
    assert isinstance(registry, RegistryState)


def test_the_owners_settings_win(membership: Path) -> None:
    write_card(membership)
    settings(f'rpc_url = "http://127.0.0.1:2"\nregistry = "{REGISTRY.lower()}"\nconfirmations = 12')
    found = settings_of_membership(membership)
    assert (found.rpc_url, found.confirmations) == ("http://127.0.0.1:2", 12)
    assert domain_of_membership(membership) == Domain(31337, REGISTRY)


@pytest.mark.parametrize("text", ["chain_id = 1", f'registry = "{OTHER}"'], ids=["chain", "other"])
def test_another_registry_than_the_owners_is_refused(text: str, membership: Path) -> None:
    write_card(membership)
    settings(text)
    with pytest.raises(ConfigurationError, match="the coordinator"):
        domain_of_membership(membership)


def test_without_a_card_the_settings_must_say_everything(membership: Path) -> None:
    assert read_card(membership) is None
    with pytest.raises(ConfigurationError, match="not said"):
        domain_of_membership(membership)
    settings(f'chain_id = 7\nregistry = "{REGISTRY}"')
    assert domain_of_membership(membership) == Domain(7, REGISTRY)
    with pytest.raises(CannotCheck, match="endpoint"):
        registry_of_membership(membership)


def test_without_an_endpoint_nothing_can_be_checked(membership: Path) -> None:
    write_card(membership, rpc_url=None)
    with pytest.raises(CannotCheck):
        registry_of_membership(membership)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 10_000, b"\0" * 70_000], ids=["empty", "object", "deep", "large"]
)
def test_a_damaged_card_is_told(data: bytes, membership: Path) -> None:
    (membership / CARD_FILE).write_bytes(data)
    with pytest.raises(ConfigurationError, match="damaged"):
        domain_of_membership(membership)

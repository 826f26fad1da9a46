"""A federation in memory for every test of this folder; see `memory_federation`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# What imports typer is imported later: pytest reads this file before it knows which warnings of
# typer's to let pass.
if TYPE_CHECKING:
    from tests.federation.local_grid import LocalGrid
    from tests.federation.memory_federation import MemoryFederation


@pytest.fixture
def quiet_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plug is pulled in these tests; `test_durable` tests the flushing."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder and home, so that nobody's own settings count."""
    for name in [name for name in os.environ if name.startswith("GENKD_")]:
        monkeypatch.delenv(name)
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))


@pytest.fixture
def federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_disk: None, no_settings: None
) -> MemoryFederation:
    """Two nodes and a coordinator on a chain in memory, which the nodes' apps read too."""
    from node import federation_registry
    from tests.federation.memory_federation import make_federation

    made = make_federation(tmp_path / "federation")
    monkeypatch.setattr(
        federation_registry,
        "registry_of_membership",
        lambda membership: (
            federation_registry.domain_of_membership(membership),
            made.chain,
        ),
    )
    return made


@pytest.fixture
def grid(federation: MemoryFederation) -> Iterator[LocalGrid]:
    """The federation's nodes, each with the real app on its membership."""
    with federation.grid() as made:
        yield made

"""A federation in memory for every test of this folder; see `memory_federation`."""

from __future__ import annotations

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
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryFederation:
    """Two nodes and a coordinator on a chain in memory, which the nodes' apps read too."""
    from tests.federation.memory_federation import in_memory

    return in_memory(tmp_path, monkeypatch)


@pytest.fixture
def grid(federation: MemoryFederation) -> Iterator[LocalGrid]:
    """The federation's nodes, each with the real app on its membership."""
    with federation.grid() as made:
        yield made

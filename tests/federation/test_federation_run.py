"""Rounds on the in-process grid: whole, interrupted, short of nodes, with hostile ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.federation.memory_federation import MemoryFederation, receipt_of
from tests.federation.memory_rounds import Rounds, statement_parents, weights_of


@pytest.fixture
def rounds(federation: MemoryFederation, tmp_path: Path) -> Rounds:
    """Three nodes, and a coordinator on an empty folder."""
    federation.add_node()
    return Rounds(federation, tmp_path / "coordinator")


def test_a_round_merges_records_and_shares_what_three_nodes_made(rounds: Rounds) -> None:
    with rounds.federation.grid() as grid:
        start, first = rounds.run(grid)
    rounds.assert_recorded_once()
    expected = weights_of(start.release / "student.safetensors") + 2  # the mean of 1, 2 and 3
    np.testing.assert_allclose(
        weights_of(first.release / "student.safetensors"), expected, rtol=1e-6
    )

"""The benchmarks are scripts beside one another; their tests find them the same way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


def idx(values: np.ndarray) -> bytes:
    """The idx format: 0, 0, 8 for bytes, the number of axes, their lengths, the values."""
    lengths = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes([0, 0, 8, values.ndim]) + lengths + values.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tiny_images: Path, tmp_path: Path) -> Path:
    """A training and a test set of what the tiny teacher knows, as idx files."""
    with np.load(tiny_images) as known:
        for part, count in (("train", 96), ("t10k", 30)):
            for name, axes in (("images", 3), ("labels", 1)):
                values = np.resize(known[name], (count, *known[name].shape[1:]))
                path = tmp_path / f"{part}-{name}-idx{axes}-ubyte"
                path.write_bytes(idx(values))
    return tmp_path


@pytest.fixture
def tiny_recipe() -> dict[str, str]:
    """Recipe keys with which everything acts from the first round, in little time."""
    return {
        "batch": "24",
        "generator_channels": "4",
        "latent_dim": "8",
        "langevin_steps": "4",
        "bank_images": "64",
        "student_steps": "1",
        "student_batch": "8",
        "warm_up": "0",
        "synthesis_share": "1",
        "effective_share": "0",
    }

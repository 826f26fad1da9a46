"""A tiny teacher that has really learnt something, and images it can be asked about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from genkd.card import InputCard, ModelCard, ModelSpec, card_to_json
from genkd.models import build_model
from genkd.weights import write_model

CLASSES = 3
SIDE = 16
TINY_CARD = ModelCard(
    ModelSpec("resnet8-quarter", CLASSES, 1),
    InputCard(SIDE, SIDE, 1, (0.5,), (0.25,)),
    ("horizontal", "vertical", "blob"),
    "Stripes and blobs, for the tests",
)


def pytest_configure(config: pytest.Config) -> None:
    # typer 0.20 imports names that click 8.5 announces to drop in 9; pyproject keeps click below 9.
    for name in ("get_binary_stream", "get_text_stream"):
        config.addinivalue_line(
            "filterwarnings", f"ignore:'click.utils.{name}' is deprecated:DeprecationWarning"
        )


def patterns(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Horizontal stripes, vertical stripes and blobs: uint8 (N, H, W) and int64 (N,)."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    images = np.empty((count, SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        phase, y, x = random.random(3)
        image[:] = (
            np.sin(2 * np.pi * (3 * rows + phase)),
            np.sin(2 * np.pi * (3 * columns + phase)),
            4 * np.exp(-30 * ((rows - y) ** 2 + (columns - x) ** 2)) - 1,
        )[label]
    images += random.normal(0, 0.3, images.shape)
    return np.clip(images * 60 + 128, 0, 255).astype(np.uint8), labels.astype(np.int64)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 of a quarter of the width, for 1x16x16 and three classes, with its card."""
    images, labels = patterns(192, seed=0)
    inputs = (torch.from_numpy(images)[:, None].float() / 255 - 0.5) / 0.25
    targets = torch.from_numpy(labels)
    model = build_model(TINY_CARD.spec, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(5):
        for start in range(0, len(targets), 32):
            batch = slice(start, start + 32)
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("teacher") / "tiny.safetensors"
    write_model(path, model.state_dict(), {"v": 1, "card": card_to_json(TINY_CARD)})
    return path


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty labelled images the tiny teacher was not trained on, as .npz."""
    images, labels = patterns(60, seed=1)
    path = tmp_path_factory.mktemp("images") / "test.npz"
    np.savez(path, images=images, labels=labels)
    return path

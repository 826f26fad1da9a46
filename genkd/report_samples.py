"""Synthetic samples as small pictures inside the page, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genkd.report_data import Samples

# What all pictures together may take of the page, which stays under 3 MB.
PICTURE_BUDGET = 1_200_000
# Larger images are shown scaled down.
MAX_SHOWN_SIDE = 64
MAX_PER_CLASS = 12


@dataclass(frozen=True)
class Picture:
    """One sample.

    Attributes:
        url: A data URL of a PNG.
        confidence: The teacher's probability of the class it was made for, or None.
    """

    url: str
    confidence: float | None


@dataclass(frozen=True)
class SampleRow:
    """Samples of one class.

    Attributes:
        label: The class.
        count: How many samples of it there are in all.
        mean_confidence: The teacher's mean probability of the class over all of them, or None.
        pictures: Some of them, evenly spread over the order in which they were made.
    """

    label: int
    count: int
    mean_confidence: float | None
    pictures: tuple[Picture, ...]


def sample_rows(samples: Samples) -> tuple[list[SampleRow], int]:
    """A row for each class that has samples, as far as the budget goes.

    Returns:
        The rows by class, and the number of classes that have samples.
    """
    labels = np.unique(samples.labels)
    _, channels, height, width = samples.images.shape
    scale = min(1.0, MAX_SHOWN_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Noise does not compress, and base64 takes four bytes for three: the dearest case.
    shown_channels = 3 if channels >= 3 else 1
    affordable = PICTURE_BUDGET // (size[0] * size[1] * shown_channels * 4 // 3 + 200)
    classes = max(1, min(len(labels), affordable))
    per_class = int(np.clip(affordable // classes, 1, MAX_PER_CLASS))
    rows = [_row(samples, int(label), per_class, size) for label in labels[:classes]]
    return rows, len(labels)


def _row(samples: Samples, label: int, per_class: int, size: tuple[int, int]) -> SampleRow:
    of_class = np.flatnonzero(samples.labels == label)
    # Evenly spread, and not the best ones: the page shows what the student saw.
    chosen = of_class[_spread(len(of_class), per_class)]
    confidence = samples.confidence
    return SampleRow(
        label=label,
        count=len(of_class),
        mean_confidence=None if confidence is None else _finite(confidence[of_class].mean()),
        pictures=tuple(
            Picture(
                _data_url(samples.images[index], size),
                None if confidence is None else _finite(confidence[index]),
            )
            for index in chosen
        ),
    )


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of range(count), evenly spread."""
    return [n * count // min(count, wanted) for n in range(min(count, wanted))]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _data_url(image: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """uint8 (C, H, W) as a PNG: in colour with three channels or more, else its first one."""
    pixels = image[:3].transpose(1, 2, 0) if len(image) >= 3 else image[0]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

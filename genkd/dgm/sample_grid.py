"""What a prior draws, as one picture: a row for each class."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from PIL import Image

from genkd.generative_model import GenerativeModel

MOST_ROWS = 20
ROWS_WITHOUT_CLASSES = 8
# Small images are shown enlarged to about this many pixels a side.
SHOWN_SIDE = 64


@dataclass(frozen=True)
class SampleGrid:
    """A picture of samples.

    Attributes:
        png: Its bytes.
        rows: How many rows of images it has: the first classes, or as many without classes.
    """

    png: bytes
    rows: int


def draw_grid(model: GenerativeModel, per_class: int, generator: torch.Generator) -> SampleGrid:
    """Draw `per_class` images of each of the first classes.

    Args:
        model: On any device.
        per_class: Images a row.
        generator: Source of the noise.
    """
    card = model.card
    rows = min(card.num_classes, MOST_ROWS) or ROWS_WITHOUT_CLASSES
    labels = torch.arange(rows).repeat_interleave(per_class) % card.conditions
    images = model.sample(labels.to(model.device), generator)
    grid = images.reshape(rows, per_class, *card.image_shape)
    grid = grid.permute(0, 3, 1, 4, 2)  # (rows, H, columns, W, C)
    grid = grid.flatten(2, 3).flatten(0, 1)  # (rows H, columns W, C)
    pixels = (grid * 255).round().to(torch.uint8).cpu().numpy()
    # Pictures are gray or in colour; of other numbers of channels the first is shown.
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    factor = max(1, SHOWN_SIDE // max(card.height, card.width))
    picture = picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return SampleGrid(buffer.getvalue(), rows)

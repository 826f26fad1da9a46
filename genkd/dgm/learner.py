"""What every family's training has in common: a learner takes a batch of public images a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from genkd.generative_model import GenerativeModel

# Feature maps are halved in size until they are at most this high and wide.
COARSEST = 4


class GenerativeLearner(Protocol):
    """How one family learns.

    Attributes:
        model: What it trains, in place.
    """

    model: GenerativeModel

    def step(self, images: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Learn from one batch.

        Args:
            images: float (B, C, H, W) in [0, 1], on the device.
            labels: int64 (B,), zeros without classes.
            progress: Share of the budget that is spent, 0..1.

        Returns:
            Losses and health figures, detached scalars.
        """
        ...

    def settle(self) -> None:
        """Make the model ready to be written; learning may go on afterwards."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes, for a checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


def strided_convolutions(
    channels: int, height: int, width: int, base_channels: int, slope: float
) -> tuple[list[nn.Conv2d], nn.Module, int]:
    """Convolutions that halve an image until it is at most 4 x 4; what reads images begins so.

    Args:
        channels: C.
        height: H.
        width: W.
        base_channels: Feature maps of the first; at most four times as many later.
        slope: Of LeakyReLU below zero.

    Returns:
        The convolutions, in order; the activation to be put after each; how many features the last
        map has in all.
    """
    layers, maps, wide = [], channels, base_channels
    while max(height, width) > COARSEST:
        layers.append(nn.Conv2d(maps, wide, 3, stride=2, padding=1))
        maps, wide = wide, min(2 * wide, 4 * base_channels)
        height, width = (height + 1) // 2, (width + 1) // 2
    return layers, nn.LeakyReLU(slope), maps * height * width

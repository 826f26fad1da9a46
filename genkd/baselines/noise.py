"""Gaussian noise, shaped until the teacher's BatchNorm layers find in it the statistics they know.

After NormShift-KD ("Breaking BatchNorm barriers for noise-driven data-free knowledge distillation",
TMLR submission 9020, 2026) and Raikwar and Mishra 2022 ("Discovering and overcoming limitations of
noise-engineered data-free knowledge distillation", NeurIPS): noise fails because it shifts the
distribution of the teacher's hidden activations, and it is seen as few classes.

    n ~ N(0, I),    x = clamp(mean + std (k * n + b), 0, 1),    min over k, b of r_BN(x)

k is a 5 x 5 filter over channels, b a shift: together the mean and the covariance that a stationary
Gaussian field can have. Then rejection: of no class more than its even share of the batch is kept.

How we differ: they leave the noise white and let the teacher normalise by the statistics of the
batch at hand. Here the student's loop asks one frozen teacher for all methods, so the noise comes
to the teacher's statistics, not the teacher to those of the noise. A teacher without BatchNorm gets
white noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from genkd.baselines.baseline import Baseline, Losses
from genkd.device import Device
from genkd.recipe import Recipe
from genkd.teacher import Teacher

REACH = 5  # pixels


class ColouredNoise(nn.Module):
    """k * n + b; white at the start.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = torch.zeros(channels, channels, REACH, REACH)
        kernel[range(channels), range(channels), REACH // 2, REACH // 2] = 1
        self.kernel = nn.Parameter(kernel)
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, white: Tensor) -> Tensor:
        """N(0, I) (B, C, H + 4, W + 4) to (B, C, H, W): borders are like the rest."""
        return functional.conv2d(white, self.kernel, self.shift)


class Noise(Baseline):
    """`generator_steps` Adam steps a round on the filter; the noise is new in each."""

    def __init__(
        self, teacher: Teacher, recipe: Recipe, device: Device, generator: torch.Generator
    ) -> None:
        super().__init__(teacher, recipe, device, generator)
        self.colour = ColouredNoise(teacher.card.input.channels).to(device.torch)
        self.optimizer = torch.optim.Adam(self.colour.parameters(), lr=recipe.generator_rate)

    def _remembered(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        return {"colour": self.colour, "optimizer": self.optimizer}

    def _accept(self, labels: Tensor) -> Tensor:
        share = -(-len(labels) // len(self.known))
        same = labels.unsqueeze(0) == labels.unsqueeze(1)  # (B, B)
        return same.tril(-1).sum(1) < share  # how many of its class came before it

    def _make(self, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        # Of a teacher without BatchNorm there is nothing to match.
        for _ in range(self.recipe.generator_steps if len(self.statistics) else 0):
            _, statistics = self.measure(self._images())
            objective = self.recipe.statistics_weight * statistics
            self.optimizer.zero_grad(set_to_none=True)
            objective.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        with torch.no_grad():
            images = self._images()
            _, statistics = self.measure(images)
        objective = self.recipe.statistics_weight * statistics
        return images, {"statistics": statistics, "objective": objective}

    def _images(self) -> Tensor:
        image = self.teacher.card.input
        margin = REACH - 1
        white = self._noise(self.batch, image.channels, image.height + margin, image.width + margin)
        images: Tensor = self.teacher.mean + self.teacher.std * self.colour(white)
        return images.clamp(0, 1).contiguous(memory_format=torch.channels_last)

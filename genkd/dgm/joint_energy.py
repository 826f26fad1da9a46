"""The energy-based model of pixels: a classifier whose logits are read as energies (JEM).

    p(x, y)  is proportional to  exp f(x)[y]       over images x in [0, 1]

    network = JointEnergy(num_classes=10, channels=1, height=28, width=28, base_channels=32)
    images = langevin_images(network, start, labels, generator, steps=20)

Sources: "Your classifier is secretly an energy based model", Grathwohl et al. 2020
(arXiv:1912.03263, section 4: p(x, y) from the logits, log p(x) up to a constant as their
LogSumExp; the sign is ours, higher f = more likely); the walk with more drift than noise, Du and
Mordatch 2019 (arXiv:1903.08689, section 3). There is no BatchNorm, which would let the images of a
batch see each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genkd.langevin import standard_normal

COARSEST = 4  # the last feature map is at most this high and wide
# JEM's step of 1 and noise of 0.01 are for images from -1 to 1: a quarter and a half of them here.
STEP_SIZE = 0.25
NOISE = 0.005
# A gradient that is larger in any pixel is cut: one exploding chain would tear the model along.
MAX_GRADIENT = 0.2


class JointEnergy(nn.Module):
    """f(x): strided convolutions and SiLU to K logits; a single one without classes.

    Args:
        num_classes: K; 0: one logit, the density of all images.
        channels: C.
        height: H, at least 8.
        width: W, at least 8.
        base_channels: Feature maps of the first layer; at most four times as many later.
    """

    def __init__(
        self, num_classes: int, channels: int, height: int, width: int, base_channels: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, base_channels, 3, padding=1), nn.SiLU()]
        maps = base_channels
        while max(height, width) > COARSEST:
            wider = min(2 * maps, 4 * base_channels)
            # Three and not four pixels wide: a side of one pixel stays one.
            layers += [nn.Conv2d(maps, wider, 3, stride=2, padding=1), nn.SiLU()]
            maps, height, width = wider, (height + 1) // 2, (width + 1) // 2
        self.body = nn.Sequential(*layers)
        self.output = nn.Linear(maps * height * width, max(1, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to f(x), (B, max(1, K)); higher = more likely."""
        logits: Tensor = self.output(self.body(2 * images - 1).flatten(1))
        return logits


def langevin_images(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    step_size: float = STEP_SIZE,
    noise: float = NOISE,
) -> Tensor:
    """Images after `steps` Langevin steps on f(x)[y], clamped to [0, 1] after each.

    As in the published pixel-space EBMs, the noise is far below what the step size asks for, so
    this samples at a low temperature, from no density one could name.

    Args:
        network: Gives f(x), (B, K). Its parameters receive no gradient.
        images: Start (B, C, H, W).
        labels: int64 (B,); zeros without classes.
        generator: Source of the noise.
        steps: How many.
        step_size: Factor on the gradient of f.
        noise: Deviation of the noise of a step.

    Returns:
        (B, C, H, W), detached.
    """
    images = images.detach()
    for _ in range(steps):
        with torch.enable_grad():
            images.requires_grad_()
            f = network(images).gather(1, labels.unsqueeze(1)).sum()
            (gradient,) = torch.autograd.grad(f, images)
        images = images.detach() + step_size * gradient.clamp(-MAX_GRADIENT, MAX_GRADIENT)
        images = (images + noise * standard_normal(images, generator)).clamp(0, 1)
    return images

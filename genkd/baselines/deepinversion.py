"""DeepInversion: each image's pixels are optimised until the teacher takes it for one of its own.

Yin et al. 2020, "Dreaming to distill: data-free knowledge transfer via DeepInversion"
(arXiv:1912.08795), equations 2 to 4, 6 and 7. In the teacher's normalised pixels x,

    CE(T(x), y) + a_tv R_TV(x) + a_l2 |x|_2 + a_bn r_BN(x)  [ + a_c (1 - JS(T(x), S(x))) ]

with a fresh x ~ N(0, I) and balanced y for every batch. The bracket, adaptive DeepInversion, acts
with `--set adversarial_weight=10` (our choice of a_c) and once the student is heeded. R_TV is the
sum of the Euclidean norms of the image's differences with its right, lower and two diagonal
neighbours.

a_tv = 2.5e-5, a_bn = 10 and 2,000 Adam steps of rate 0.05 are "the parameters from the paper" of
https://github.com/NVlabs/DeepInversion (cifar10/README.md and the defaults of its script); a_l2 is
3e-8 as we remember the paper, and 0 in that script: neither changes an image visibly. As in that
script, each step sees the batch rolled around by up to two pixels. How we differ: the norms are of
each image, averaged over the batch; pixels stay within those an image in [0, 1] can have, since the
bank stores only such; the last step's images are kept, not those of the lowest loss. Without
BatchNorm in the teacher what remains is DeepDream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genkd.baselines.baseline import Baseline, Losses
from genkd.losses import class_cross_entropy, divergence

TOTAL_VARIATION = 2.5e-5
PIXEL_NORM = 3e-8
JITTER = 2  # pixels
# Keeps the norm's gradient finite where an image is flat.
LEAST = 1e-12


class DeepInversion(Baseline):
    """`generator_steps` Adam steps on the pixels of each batch; nothing outlives it."""

    def _make(self, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        image = self.teacher.card.input
        mean, std = self.teacher.mean, self.teacher.std
        labels = self._labels()
        pixels = self._noise(self.batch, image.channels, image.height, image.width)
        pixels = pixels.contiguous(memory_format=torch.channels_last).requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=self.recipe.generator_rate)
        losses: Losses = {}
        for shift in self._shifts():
            jittered = pixels.roll(shift, dims=(2, 3))  # all images of the batch alike
            objective, losses = self._losses(jittered, labels, student, steer)
            optimizer.zero_grad(set_to_none=True)
            objective.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(-mean / std, (1 - mean) / std)
            losses = {**losses, "objective": objective}
        # The clamp is of normalised pixels; going back may round past the ends.
        return (mean + std * pixels.detach()).clamp(0, 1), losses

    def _shifts(self) -> list[list[int]]:
        """How far each step rolls the batch down and right; at once, for numbers are waited for."""
        shape, on = (self.recipe.generator_steps, 2), self.device.torch
        shifts = torch.randint(-JITTER, JITTER + 1, shape, generator=self.random, device=on)
        found: list[list[int]] = shifts.tolist()
        return found

    def _losses(
        self, pixels: Tensor, labels: Tensor, student: nn.Module, steer: bool
    ) -> tuple[Tensor, Losses]:
        recipe = self.recipe
        images = self.teacher.mean + self.teacher.std * pixels
        logits, statistics = self.measure(images)
        label = class_cross_entropy(logits, labels)
        prior = TOTAL_VARIATION * directional_variation(pixels)
        prior = prior + PIXEL_NORM * torch.linalg.vector_norm(pixels.flatten(1), dim=1).mean()
        objective = recipe.label_loss_weight * label + recipe.statistics_weight * statistics + prior
        losses = {"statistics": statistics, "label": label, "image_prior": prior}
        if steer and recipe.adversarial_weight:
            competition = competition_loss(logits, self.ask(student, images))
            objective = objective + recipe.adversarial_weight * competition
            losses["competition"] = competition
        return objective, losses


def directional_variation(images: Tensor) -> Tensor:
    """R_TV: Euclidean norms of an image's differences in four directions, summed.

    Args:
        images: (B, C, H, W).

    Returns:
        Scalar, the mean over the batch, >= 0.
    """
    differences = (
        images[:, :, :, 1:] - images[:, :, :, :-1],
        images[:, :, 1:] - images[:, :, :-1],
        images[:, :, 1:, 1:] - images[:, :, :-1, :-1],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
    )
    norms = [(each.flatten(1).square().sum(1) + LEAST).sqrt() for each in differences]
    return torch.stack(norms).sum(0).mean()


def competition_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """R_compete = 1 - JS(T, S), equation 7: low where the student does not follow the teacher.

    Returns:
        Scalar, 1 - ln 2..1, the mean over the batch.
    """
    return 1 - divergence(teacher_logits, student_logits, "js").mean()

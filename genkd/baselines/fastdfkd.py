"""FastDFKD: a generator that has learnt to be adapted in a few steps to any batch.

Fang et al. 2022, "Up to 100x faster data-free knowledge distillation" (arXiv:2112.15278),
equations 1, 3 and 6. For each batch, from the meta-learned theta and a fresh z ~ N(0, I),

    z, theta'  <-  Adam steps on   a_oh CE(T, y) + a_bn r_BN - a_adv mean(mask KL(T || S))
    theta      <-  theta + STEP (theta' - theta)                                      (Reptile)

so that what classes and batches share stays in theta, and what is this batch's goes with it. The
authors' code (https://github.com/zju-vipa/Fast-Datafree, scripts/fast_cifar.sh) has the weights
0.5, 10 and 1.33, a momentum of 0.9 across batches in r_BN, and for ten steps the rates 2e-3 for
theta' and 0.01 for z; teacher and student are shown the images shifted by up to 4 of 32 pixels and
mirrored (`synthesis_shift`).

How we differ: the outer step is Nichol et al.'s Reptile (arXiv:1803.02999) without Adam, its length
ours, where the authors' scripts take first-order MAML with Adam of the rate 10 x 2e-3; theta's
first layer never starts anew; the last step's images are kept, not those of the lowest loss.
Without BatchNorm r_BN is zero and the rest remains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from genkd.baselines.baseline import Baseline, Losses
from genkd.device import Device
from genkd.losses import class_cross_entropy, masked_divergence
from genkd.recipe import Recipe
from genkd.synthesis import ADAM_BETAS
from genkd.teacher import Teacher

LATENT_RATE = 0.01
STEP = 0.5  # of the way from theta to theta'


class FastDfkd(Baseline):
    """`generator_steps` Adam steps on latents and generator for each batch."""

    def __init__(
        self, teacher: Teacher, recipe: Recipe, device: Device, generator: torch.Generator
    ) -> None:
        super().__init__(teacher, recipe, device, generator)
        self.network = self._new_generator()

    def _remembered(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        return {"generator": self.network}

    def _make(self, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        meta = [value.detach().clone() for value in self.network.parameters()]
        try:
            images, losses = self._adapt(student, steer)
            reptile_step(self.network.parameters(), meta, STEP)
        except BaseException:  # memory ran out: the batch is halved and starts from theta again
            reptile_step(self.network.parameters(), meta, 0.0)
            raise
        return images, losses

    def _adapt(self, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        labels = self._labels()
        latents = self._noise(self.batch, self.recipe.latent_dim).requires_grad_()
        self.network.train()
        optimizer = torch.optim.Adam(
            [
                {"params": [latents], "lr": LATENT_RATE},
                {"params": list(self.network.parameters()), "lr": self.recipe.generator_rate},
            ],
            betas=ADAM_BETAS,
        )
        losses: Losses = {}
        for _ in range(self.recipe.generator_steps):
            images = self._draw(self.network, latents)
            objective, losses = inversion_losses(self, self._shown(images), labels, student, steer)
            optimizer.zero_grad(set_to_none=True)
            objective.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses = {**losses, "objective": objective}
        with torch.no_grad():
            return self._draw(self.network, latents), losses


def inversion_losses(
    method: Baseline, images: Tensor, labels: Tensor, student: nn.Module, steer: bool
) -> tuple[Tensor, Losses]:
    """a_oh CE(T, y) + a_bn r_BN - a_adv mean(mask KL(T || S)), and its parts; NAYER's too.

    Args:
        method: Whose teacher, statistics and weights count.
        images: (B, C, H, W) in [0, 1], with their graph.
        labels: int64 (B,), the classes the images are to be of.
        student: Asked if `steer`.
        steer: Whether the adversarial term acts yet.
    """
    recipe = method.recipe
    logits, statistics = method.measure(images)
    label = class_cross_entropy(logits, labels)
    objective = recipe.label_loss_weight * label + recipe.statistics_weight * statistics
    losses = {"statistics": statistics, "label": label}
    if steer and recipe.adversarial_weight:
        adversarial = masked_divergence(logits, method.ask(student, images)).mean()
        objective = objective - recipe.adversarial_weight * adversarial
        losses["adversarial"] = adversarial
    return objective, losses


@torch.no_grad()
def reptile_step(adapted: Iterable[Tensor], meta: list[Tensor], step: float) -> None:
    """Take theta + step (theta' - theta), written over theta'.

    Args:
        adapted: theta', parameters.
        meta: theta, in the same order.
        step: 0: back to theta; 1: on to theta'.
    """
    for fast, slow in zip(adapted, meta, strict=True):
        fast.copy_(torch.lerp(slow, fast, step))

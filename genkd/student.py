"""A stretch of distillation: the student learns from the bank what the teacher says of its images.

    learner = StudentLearner(student, recipe, device, generator)
    figures = learner.learn(teacher, bank, progress=0.4)      # `student_steps` SGD steps

SGD with Nesterov momentum and a one-cycle rate: on the shipped teacher 300 steps of 128 reach what
Adam needs three times as many for (CONTRIBUTING.md gives the figures).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genkd.augmentation import augment, random_affine
from genkd.bank import SynthesisBank
from genkd.card import InputCard
from genkd.device import Device, global_random
from genkd.ensemble import Ensemble
from genkd.losses import distillation_loss
from genkd.recipe import Recipe
from genkd.teacher import Teacher

MOMENTUM = 0.9
# The rate rises linearly over the first share of the budget, then falls along a cosine.
RATE_WARM_UP = 0.05
LOWEST_RATE = 1e-3  # as a share of the peak
SETTLING_BATCHES = 20


class NormalisedStudent(nn.Module):
    """A student with its normalisation in front, so that it takes images in [0, 1].

    Args:
        network: Takes normalised images (B, C, H, W), gives logits (B, K).
        card: Says the mean and the standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: InputCard) -> None:
        super().__init__()
        self.network = network
        shape = (1, card.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(card.mean).reshape(shape))
        self.register_buffer("std", torch.tensor(card.std).reshape(shape))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K)."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


class StudentLearner:
    """The student and its optimiser.

    Args:
        student: On the device, in channels-last memory; maps images in [0, 1] to logits.
        recipe: Its `student_*` keys, `temperature`, `affine`, `texture`, `mixed_share`,
            `settling_affine`.
        device: Where.
        generator: Source of everything random here, on the device.
    """

    def __init__(
        self, student: nn.Module, recipe: Recipe, device: Device, generator: torch.Generator
    ) -> None:
        self.student, self.recipe, self.device, self.random = student, recipe, device, generator
        self.optimizer = torch.optim.SGD(
            student.parameters(),
            lr=recipe.student_rate,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=recipe.student_decay,
        )
        self.batch = recipe.student_batch

    def learn(
        self, teacher: Teacher | Ensemble, bank: SynthesisBank, progress: float
    ) -> tuple[dict[str, Tensor], float]:
        """`student_steps` steps on augmented images of the bank.

        Args:
            teacher: Says what is right, of each augmented image anew.
            bank: Holds at least one image.
            progress: Share of this stage of learning that is done, 0..1; decides the rate.

        Returns:
            The last step's loss and agreement, scalars on the device; and the learning rate.
        """
        rate = learning_rate(self.recipe.student_rate, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.student.train()
        figures: dict[str, Tensor] = {}
        with self._own_dropout():
            for _ in range(self.recipe.student_steps):
                figures = self._step(teacher, bank)
        self.student.eval()
        return figures, rate

    @contextmanager
    def _own_dropout(self) -> Iterator[None]:
        """What layers draw from torch's global random state follows from ours, which stays put.

        Dropout and stochastic depth take no generator; without them nothing is drawn from it.
        """
        on = self.random.device
        ahead = torch.Generator(on)
        ahead.set_state(self.random.get_state())
        seed = int(torch.randint(2**62, (), generator=ahead, device=on))
        with global_random(on, seed):
            yield

    @torch.no_grad()
    def settle(self, bank: SynthesisBank) -> None:
        """Let BatchNorm remember stored images, moved a little; call it once, after the last step.

        While learning it saw them textured and blended as well. Settled on stored images as they
        are, a student agrees with its teacher on up to 1.5 % fewer real ones (docs/tried.md). The
        statistics are also what a merge later draws images out of the student by, and what it
        judges real images by.
        """
        norms = [
            module
            for module in self.student.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.running_mean is not None
        ]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over all batches
        self.student.eval()  # dropout rests
        for norm in norms:
            norm.train()
        for _ in range(SETTLING_BATCHES if norms else 0):
            images, _ = bank.draw(self.batch, self.random)
            if self.recipe.settling_affine > 0:
                images = random_affine(images, self.recipe.settling_affine, self.random)
            with self.device.autocast():
                self.student(images.contiguous(memory_format=torch.channels_last))
        self.student.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def halve_batch(self) -> int:
        """Learn from half as many images a step from now on; how many, or 0 if not possible."""
        if self.batch // 2 < 2:  # BatchNorm needs two
            return 0
        self.batch //= 2
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "batch": self.batch,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.batch = state["batch"]
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _step(self, teacher: Teacher | Ensemble, bank: SynthesisBank) -> dict[str, Tensor]:
        recipe = self.recipe
        with torch.no_grad():
            stored, _ = bank.draw(self.batch, self.random)
            images = augment(
                stored,
                affine=recipe.affine,
                texture=recipe.texture,
                mixed_share=recipe.mixed_share,
                generator=self.random,
            )
            images = images.contiguous(memory_format=torch.channels_last)
            with self.device.autocast():
                teacher_logits = teacher(images)
        with self.device.autocast():
            student_logits = self.student(images)
        loss = distillation_loss(teacher_logits, student_logits, recipe.temperature)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        agree = (student_logits.argmax(1) == teacher_logits.argmax(1)).float().mean()
        return {"distillation": loss.detach(), "agreement": agree}


def learning_rate(peak: float, progress: float) -> float:
    """The one-cycle rate at `progress`, 0..1: up to `peak` and back down along a cosine."""
    if progress < RATE_WARM_UP:
        return peak * max(LOWEST_RATE, progress / RATE_WARM_UP)
    done = min(1.0, (progress - RATE_WARM_UP) / (1 - RATE_WARM_UP))
    return peak * max(LOWEST_RATE, 0.5 * (1 + math.cos(math.pi * done)))

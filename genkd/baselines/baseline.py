"""What all baselines have in common: they make images, the teacher says what it sees, all are kept.

A method of its own implements `_make`; one that trains a generator from fresh noise only its loss
(`GeneratorBaseline`). None asks the teacher to confirm a class: papers before verification fed the
student whatever came, and an image's label is the teacher's own arg max.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genkd.augmentation import random_shift
from genkd.bank import as_images, quantise
from genkd.batch_statistics import BatchStatistics
from genkd.device import Device
from genkd.errors import InputFileRefused
from genkd.generator import Generator
from genkd.losses import class_entropy, label_log_probability, within_class_deviation
from genkd.recipe import Recipe
from genkd.sources import draw_evenly
from genkd.synthesis import ADAM_BETAS, SynthesisMethod, SyntheticBatch, frozen
from genkd.teacher import Teacher

Losses = dict[str, Tensor]


class Baseline(SynthesisMethod):
    """A method that keeps whatever it makes, unless `_accept` says otherwise.

    Args:
        teacher: On the device, in channels-last memory.
        recipe: What to do.
        device: Where.
        generator: Source of everything random here, on the device.
    """

    def __init__(
        self, teacher: Teacher, recipe: Recipe, device: Device, generator: torch.Generator
    ) -> None:
        super().__init__(recipe.batch, teacher.card.spec.num_classes)
        self.teacher, self.recipe, self.device, self.random = teacher, recipe, device, generator
        self.known = torch.tensor(teacher.known, device=device.torch)
        self.statistics = BatchStatistics(teacher, momentum=recipe.statistics_momentum)

    @abstractmethod
    def _make(self, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        """Images (B, C, H, W) in [0, 1], and the losses of the last step, `objective` the sum."""

    def _remembered(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        """What lives longer than a round, for a checkpoint."""
        return {}

    def _accept(self, labels: Tensor) -> Tensor:
        """Which images to keep (B,), by what the teacher says they are."""
        return torch.ones_like(labels, dtype=torch.bool)

    def synthesise(self, student: nn.Module, *, steer: bool) -> SyntheticBatch:
        """Make a batch of images.

        Args:
            student: In `eval()`; only asked, never changed.
            steer: Whether terms that ask the student act yet.
        """
        passes = self.teacher_passes
        with frozen(student):
            made, losses = self._make(student, steer)
        self.rounds += 1
        self.statistics.update()
        images = quantise(made)
        with torch.no_grad():
            logits = self.ask(self.teacher, as_images(images))
            student_logits = self.ask(student, as_images(images))
        self.teacher_passes += len(images)
        labels = logits.argmax(1)
        accepted = self._accept(labels)
        health = {
            "acceptance": accepted.float().mean(),
            "class_entropy": class_entropy(logits),
            "agreement_on_new": (student_logits.argmax(1) == labels).float().mean(),
            "pixel_deviation": within_class_deviation(as_images(images), labels, self.num_classes)
            .nanmean()
            .nan_to_num(0.0),  # no class came twice
        }
        confidence = label_log_probability(logits, labels).exp()
        return SyntheticBatch(
            images[accepted],
            labels[accepted],
            confidence[accepted],
            {name: value.detach() for name, value in losses.items()},
            health,
            self.teacher_passes - passes,
            self._warnings(),
        )

    def _warnings(self) -> tuple[str, ...]:
        """Told once: that a part of the method is without effect."""
        if len(self.statistics) or not self.recipe.statistics_weight or self.rounds > 1:
            return ()
        method = self.recipe.method
        return (f"the teacher has no BatchNorm: {method} goes without that part of its loss",)

    def close(self) -> None:
        """Take the hooks off the teacher."""
        self.statistics.remove()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the random state is the caller's."""
        return {
            "batch": self.batch,
            "rounds": self.rounds,
            "teacher_passes": self.teacher_passes,
            "statistics": self.statistics.state_dict(),
            **{name: part.state_dict() for name, part in self._remembered().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            InputFileRefused: If it is of another method.
        """
        if state.keys() != self.state_dict().keys():
            raise InputFileRefused(
                "the checkpoint is of another method", hint="start anew with --fresh"
            )
        self.batch, self.rounds = state["batch"], state["rounds"]
        self.teacher_passes = state["teacher_passes"]
        self.statistics.load_state_dict(state["statistics"])
        for name, part in self._remembered().items():
            part.load_state_dict(state[name])

    def ask(self, model: nn.Module, images: Tensor) -> Tensor:
        """A model's logits (B, K), in float32."""
        with self.device.autocast():
            logits: Tensor = model(images)
        return logits.float()

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits (B, K) and r_BN, both with gradients; counts the pass."""
        with self.device.autocast():
            logits, statistics = self.statistics.measure(images)
        self.teacher_passes += len(images)
        return logits.float(), statistics

    def _shown(self, images: Tensor) -> Tensor:
        """The images as teacher and student are shown them while they are made."""
        return random_shift(images, self.recipe.synthesis_shift, self.random)

    def _noise(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(shape, generator=self.random, device=self.device.torch)

    def _labels(self) -> Tensor:
        """As many of each class as possible (B,), in random order."""
        return draw_evenly(self.known, self.batch, self.random)

    def _new_generator(self) -> Generator:
        """An unconditional one, G(z): its label embeddings have no length."""
        card = self.teacher.card
        return Generator(
            self.recipe.latent_dim,
            torch.zeros(self.num_classes, 0),
            channels=card.input.channels,
            height=card.input.height,
            width=card.input.width,
            base_channels=self.recipe.generator_channels,
            generator=self.random,
        ).to(self.device.torch)

    def _draw(self, network: Generator, latents: Tensor) -> Tensor:
        """G(z) (B, C, H, W), with a gradient."""
        with self.device.autocast():
            images: Tensor = network(latents, latents[:, :0])
        return images.float()


class GeneratorBaseline(Baseline):
    """One generator for the whole run: `generator_steps` Adam steps a round, on fresh noise."""

    def __init__(
        self, teacher: Teacher, recipe: Recipe, device: Device, generator: torch.Generator
    ) -> None:
        super().__init__(teacher, recipe, device, generator)
        self.network = self._new_generator()
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=recipe.generator_rate, betas=ADAM_BETAS
        )

    @abstractmethod
    def _losses(self, images: Tensor, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        """The loss to minimise, a scalar, and its parts."""

    def _remembered(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        return {"generator": self.network, "optimizer": self.optimizer}

    def _make(self, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        losses: Losses = {}
        self.network.train()
        for _ in range(self.recipe.generator_steps):
            images = self._draw(self.network, self._noise(self.batch, self.recipe.latent_dim))
            objective, losses = self._losses(images, student, steer)
            self.optimizer.zero_grad(set_to_none=True)
            objective.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses = {**losses, "objective": objective}
        with torch.no_grad():
            fresh = self._draw(self.network, self._noise(self.batch, self.recipe.latent_dim))
        return fresh, losses

"""One round of synthesis: propose latents, learn to draw them, verify, learn from what came out.

    synthesiser = Synthesiser(teacher, recipe, device, generator)
    batch = synthesiser.synthesise(student, steer=True)     # the student only says what it lacks
    bank.add(batch.images, batch.labels, batch.confidence)

The generator's loss (DeepInversion's statistics, a class to be, and the masked adversarial term of
DFQ and NAYER):

    lambda_bn r_BN + lambda_oh CE(T, y) - lambda_adv mean(mask KL(T || S)) + lambda_tv TV

with lambda_oh times `LABEL_WITHOUT_BATCH_NORM` if no teacher has a BatchNorm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genkd.augmentation import random_shift
from genkd.bank import as_images, quantise
from genkd.device import Device
from genkd.ensemble import Ensemble
from genkd.generator import Generator
from genkd.losses import (
    class_cross_entropy,
    class_entropy,
    label_log_probability,
    masked_divergence,
    reward,
    self_normalised_weights,
    total_variation,
    within_class_deviation,
)
from genkd.prior import LatentPrior, Proposal
from genkd.recipe import Recipe
from genkd.rejection import rejection_sample
from genkd.sources import Sources
from genkd.teacher import Teacher

ADAM_BETAS = (0.5, 0.999)  # DCGAN's (arXiv:1511.06434): a fast-changing loss wants little momentum
# Without BatchNorm the class is nearly all that a teacher tells of its images (CONTRIBUTING, 20).
LABEL_WITHOUT_BATCH_NORM = 4.0
LEAST_BATCH = 4  # of fewer images statistics say nothing; classes that do not fit take turns


@dataclass(frozen=True)
class SyntheticBatch:
    """What one round adds to the bank.

    Attributes:
        images: uint8 (B, C, H, W), verified by the teacher after quantising.
        labels: int64 (B,), the class asked for, which the teacher confirms.
        confidence: float32 (B,), the teacher's probability of it, 0..1.
        losses: Scalars on the device, detached.
        health: Likewise.
        teacher_passes: Images that went through the teacher.
        warnings: What a person should know, a sentence each.
    """

    images: Tensor
    labels: Tensor
    confidence: Tensor
    losses: dict[str, Tensor]
    health: dict[str, Tensor]
    teacher_passes: int
    warnings: tuple[str, ...] = ()


class SynthesisMethod(ABC):
    """Where images come from: what the alternation of `genkd.train` asks of a method.

    Attributes:
        batch: Images a round; halved by `halve_batch`.
        num_classes: K.
        rounds: Rounds so far.
        teacher_passes: Images that went through the teacher so far.
    """

    def __init__(self, batch: int, num_classes: int) -> None:
        self.batch, self.num_classes = batch, num_classes
        self.rounds = self.teacher_passes = 0

    @abstractmethod
    def synthesise(self, student: nn.Module, *, steer: bool) -> SyntheticBatch:
        """Make a batch for this student; `steer`: whether the student is to be heeded yet."""

    def halve_batch(self) -> int:
        """Make half as many images a round from now on; how many, or 0 if that is not possible."""
        if self.batch // 2 < LEAST_BATCH:
            return 0
        self.batch //= 2
        return self.batch

    @abstractmethod
    def close(self) -> None:
        """Take the hooks off the teacher."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the random state is the caller's."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""


class Synthesiser(SynthesisMethod):
    """GenKD's way: the generator, its prior and what they remember.

    Args:
        teacher: On the device, in channels-last memory. An ensemble has one generator for all.
        recipe: What to do.
        device: Where.
        generator: Source of everything random here, on the device.
    """

    def __init__(
        self,
        teacher: Teacher | Ensemble,
        recipe: Recipe,
        device: Device,
        generator: torch.Generator,
    ) -> None:
        card = teacher.card
        super().__init__(recipe.batch, card.spec.num_classes)
        self.recipe, self.device, self.random = recipe, device, generator
        self.sources = Sources(teacher, recipe.statistics_momentum, device)
        self.label_weight = recipe.label_loss_weight * (
            1.0 if self.sources.have_batch_norm else LABEL_WITHOUT_BATCH_NORM
        )
        embeddings = self.sources.embeddings()
        self.generator = Generator(
            recipe.latent_dim,
            embeddings,
            channels=card.input.channels,
            height=card.input.height,
            width=card.input.width,
            base_channels=recipe.generator_channels,
            label_weight=recipe.label_weight,
            generator=generator,
        ).to(device.torch)
        self.prior = LatentPrior(embeddings, recipe, device, generator) if recipe.energy else None

    def synthesise(self, student: nn.Module, *, steer: bool) -> SyntheticBatch:
        """Train the generator on one batch of latents and keep the images it draws of them.

        Args:
            student: In `eval()`; only asked, never changed.
            steer: Whether the adversarial term and the policy gradient act yet.
        """
        passes = self.teacher_passes
        if self.recipe.generator_rounds and self.rounds % self.recipe.generator_rounds == 0:
            self._start_anew()
        self.rounds += 1
        proposal = self._propose()
        found, losses = self._search(proposal, student, steer)
        self.sources.update()
        images, logits, student_logits = self._draw(found, proposal.labels, student)
        labels = self.sources.class_of[proposal.labels]
        log_probability = label_log_probability(logits, labels)
        chosen = self._choose(logits, labels, log_probability)
        spread = within_class_deviation(as_images(images), labels, self.num_classes)
        agree = (student_logits.argmax(1) == logits.argmax(1)).float().mean()
        health = {
            "acceptance": chosen.float().mean(),
            "class_entropy": class_entropy(logits),
            "agreement_on_new": agree,
            "pixel_deviation": spread.nanmean().nan_to_num(0.0),
        }
        if self.prior is not None:
            weights = self._weights(logits, labels, log_probability)
            positives = (found, proposal.labels, weights)
            # Of the images that came of the proposals, not of what G made of these before it
            # learnt: those are hardly ever of the wanted class, and never enter the bank.
            rewards = reward(logits, student_logits, labels)
            figures = self._learn_prior(self.prior, proposal, positives, rewards, student, steer)
            losses |= {k: figures.pop(k) for k in ("mle", "policy_gradient") if k in figures}
            health |= figures
        return SyntheticBatch(
            images[chosen],
            labels[chosen],
            log_probability[chosen].exp(),
            losses,
            health,
            self.teacher_passes - passes,
            self.sources.warnings() if self.rounds == 1 else (),
        )

    def close(self) -> None:
        """Take the hooks off the teacher."""
        self.sources.close()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the random state is the caller's."""
        return {
            "batch": self.batch,
            "rounds": self.rounds,
            "teacher_passes": self.teacher_passes,
            "generator": self.generator.state_dict(),
            "sources": self.sources.state_dict(),
            "prior": None if self.prior is None else self.prior.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.batch, self.rounds = state["batch"], state["rounds"]
        self.teacher_passes = state["teacher_passes"]
        self.generator.load_state_dict(state["generator"])
        self.sources.load_state_dict(state["sources"])
        if self.prior is not None:
            self.prior.load_state_dict(state["prior"])

    def _start_anew(self) -> None:
        """A generator that starts anew draws other pictures; what z meant is forgotten."""
        self.generator.reinitialise(self.random)
        if self.prior is not None:
            self.prior.forget(self.random)

    def _propose(self) -> Proposal:
        """Latents for a batch; its labels are requests of `Sources`."""
        requests = self.sources.draw(self.batch, self.random)
        if self.prior is not None:
            return self.prior.draw(requests, self.random)
        shape = (self.batch, self.recipe.latent_dim)
        if self.recipe.rejection_candidates == 0:
            latents = torch.randn(shape, generator=self.random, device=self.device.torch)
            return Proposal(latents, requests, None)
        latents = rejection_sample(
            self._log_weight,
            requests,
            self.recipe.latent_dim,
            candidates=self.recipe.rejection_candidates,
            generator=self.random,
        )
        return Proposal(latents, requests, None)

    @torch.no_grad()
    def _log_weight(self, latents: Tensor, requests: Tensor) -> Tensor:
        """The v / beta of confirmed images (B,), as the likelihood weighs its positives."""
        with self.device.autocast():
            images = as_images(quantise(self.generator(latents, requests)))
            logits = self.sources.answer(images, requests).float()
        self.teacher_passes += len(latents)
        labels = self.sources.class_of[requests]
        scaled = label_log_probability(logits, labels) / self.recipe.positive_temperature
        return scaled.masked_fill(logits.argmax(1) != labels, -1e4)

    def _search(
        self, proposal: Proposal, student: nn.Module, steer: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents z+ (B, d) of images as wanted, from the proposed ones on, and the last losses.

        Generator and latents learn together, as NAYER's noisy layers do (arXiv:2310.00258, section
        3.3): a generator that could reach its aims by the label alone would draw one picture a
        class. Adam starts anew with every batch, for its latents are new.
        """
        recipe = self.recipe
        found = proposal.latents.detach().clone().requires_grad_()
        groups = [
            {"params": list(self.generator.parameters()), "lr": recipe.generator_rate},
            {"params": [found], "lr": recipe.latent_rate},
        ]
        optimizer = torch.optim.Adam(groups, betas=ADAM_BETAS)
        losses: dict[str, Tensor] = {}
        self.generator.train()
        with frozen(student):
            for _ in range(recipe.generator_steps):
                loss, losses = self._losses(found, proposal.labels, student, steer)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return found.detach(), losses

    def _losses(
        self, latents: Tensor, requests: Tensor, student: nn.Module, steer: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, with its gradient, and its parts, without."""
        recipe = self.recipe
        with self.device.autocast():
            images = self.generator(latents, requests).float()
            images = random_shift(images, recipe.synthesis_shift, self.random)
            logits, statistics = self.sources.measure(images, requests)
        self.teacher_passes += len(images)
        label_loss = class_cross_entropy(logits, self.sources.class_of[requests])
        loss = recipe.statistics_weight * statistics + self.label_weight * label_loss
        losses = {"statistics": statistics.detach(), "label": label_loss.detach()}
        if recipe.smoothness_weight:
            loss = loss + recipe.smoothness_weight * total_variation(images)
        if steer and recipe.adversarial_weight:
            with self.device.autocast():
                student_logits = student(images)
            adversarial = masked_divergence(logits, student_logits).mean()
            loss = loss - recipe.adversarial_weight * adversarial
            losses["adversarial"] = adversarial.detach()
        return loss, losses

    @torch.no_grad()
    def _draw(
        self, latents: Tensor, requests: Tensor, student: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images as the bank would keep them, and what teacher and student say of just those."""
        with self.device.autocast():
            images = quantise(self.generator(latents, requests))
            stored = as_images(images)
            logits, student_logits = self.sources.answer(stored, requests), student(stored)
        self.teacher_passes += len(images)
        return images, logits.float(), student_logits.float()

    def _choose(self, logits: Tensor, labels: Tensor, log_probability: Tensor) -> Tensor:
        """Which images enter the bank (B,): verified, and among the best of their class."""
        verified = logits.argmax(1) == labels
        if self.recipe.acceptance == 1:
            return verified
        score = log_probability.masked_fill(~verified, -torch.inf)
        same = labels.unsqueeze(0) == labels.unsqueeze(1)  # (B, B)
        better = (same & (score.unsqueeze(0) > score.unsqueeze(1))).sum(1)
        count = (same & verified.unsqueeze(0)).sum(1)
        return verified & (better < (self.recipe.acceptance * count).ceil())

    def _weights(self, logits: Tensor, labels: Tensor, log_probability: Tensor) -> Tensor:
        """Of the likelihood's positives (B,), zero for those that the teacher does not verify.

        Weight zero in place of leaving out: no shape depends on the data, so nothing waits.
        """
        verified = logits.argmax(1) == labels
        score = log_probability.masked_fill(~verified, -1e4)
        # Where none is verified the weights alone would be even.
        return verified * self_normalised_weights(score, self.recipe.positive_temperature)

    def _learn_prior(
        self,
        prior: LatentPrior,
        proposal: Proposal,
        positives: tuple[Tensor, Tensor, Tensor],
        rewards: Tensor,
        student: nn.Module,
        steer: bool,
    ) -> dict[str, Tensor]:
        """Positives are this round's own: to the generator of now, older latents mean others.

        Proposals are credited with the rewards (B,) of the images that came of them.
        """

        def reward_of(latents: Tensor, requests: Tensor) -> Tensor:
            if self.recipe.policy_gradient == "pathwise":
                # The images that came of the proposals, too: moved as the search moved them.
                moved = latents + (positives[0] - proposal.latents)
                return self._differentiable_reward(moved, requests, student)
            return self._reward(latents, requests, student)

        steer = steer and self.recipe.policy_gradient != "none"
        return prior.learn(proposal, positives, reward_of if steer else None, rewards, self.random)

    def _reward(self, latents: Tensor, requests: Tensor, student: nn.Module) -> Tensor:
        """What the student has to learn (B,) of G's images of `latents`; 0 of another class."""
        _, teacher_says, student_says = self._draw(latents, requests, student)
        return reward(teacher_says, student_says, self.sources.class_of[requests])

    def _differentiable_reward(
        self, latents: Tensor, requests: Tensor, student: nn.Module
    ) -> Tensor:
        """The reward (B,) of images before quantising, which would stop its gradient."""
        with self.device.autocast():
            images = self.generator(latents, requests)
            logits, student_logits = self.sources.answer(images, requests), student(images)
        self.teacher_passes += len(images)
        return reward(logits, student_logits, self.sources.class_of[requests])


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Gradients flow through `model` to the images, but none is computed for its weights."""
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)

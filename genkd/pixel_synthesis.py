"""Images drawn from the pixel-space energy-based model: the method `genkd-pixel`.

    p(x | y)  is proportional to  exp(t(x)[y] + h(phi(x))[y]) exp(-lambda r_BN(x) - lambda' TV(x))

(`genkd.pixel_energy` says what these are.) Chains walk in the teacher's normalised pixels u, within
those that images in [0, 1] have, by stochastic gradient Langevin dynamics with a clamped gradient,

    u' = clip(u + alpha clamp(grad_u log p, -c, c) + s eps),    eps ~ N(0, I)

alpha is the recipe's `generator_rate`, s its `langevin_step_size`, lambda and lambda' its
`statistics_weight` and `smoothness_weight`. This samples p^(1 / tau) with tau = s^2 / (2 alpha),
far below 1 with usual values: images must be likely ones. The common factor 1 / tau of all
gradients of h is left out. r_BN and TV are of a batch, so log p is of the whole batch, and each
image counts in it as if it stood alone. Chains outlive a round in a replay buffer; a few percent
start anew from N(0, I).

**Dear**: every step of every chain is a forward and a backward pass of the teacher, where the
latent EBM walks through a small network. With the shipped teacher an image took 17.6 ms of a core,
with `genkd` 5.6; and a chain gives about twenty images, one a round, before it starts anew, so that
pictures that do not descend from one another are some sixty times as dear. It is here as the
reference that is near the paper, not to be used where time matters.

Where we differ from the paper: its chains are walked afresh for each gradient; here they go on from
the replay buffer, so the chain estimator is of the steps of one round given where they began.

Sources: JEM, Grathwohl et al. 2020 (arXiv:1912.03263); replay with 5 % restarts and clamped
gradients, Du and Mordatch 2019 (arXiv:1903.08689, section 3.2 and its code); r_BN as a prior of
images, Yin et al. 2020 (arXiv:1912.08795).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genkd.bank import as_images, quantise
from genkd.baselines.baseline import Baseline, Losses
from genkd.device import Device
from genkd.features import FeatureReader
from genkd.langevin import Chain, ReplayBuffer
from genkd.losses import (
    class_cross_entropy,
    label_log_probability,
    reward,
    total_variation,
)
from genkd.pixel_energy import HeadLearner
from genkd.recipe import Recipe
from genkd.teacher import Teacher

GRADIENT_CLAMP = 0.1  # c, of the gradient at each normalised pixel
RESTART_PROBABILITY = 0.05
REPLAY_BATCHES = 4  # batches' worth of chains in the replay buffer


@dataclass(frozen=True)
class Score:
    """Where log p rises at some images.

    Attributes:
        gradient: grad_u log p (B, C, H, W).
        logits: The teacher's (B, K).
        features: phi (B, D).
        losses: What log p is made of, detached scalars.
    """

    gradient: Tensor
    logits: Tensor
    features: Tensor
    losses: Losses


@dataclass(frozen=True)
class Walk:
    """Where a batch of chains went.

    Attributes:
        pixels: u at the end (B, C, H, W).
        losses: Of the last step, detached scalars.
        first_logits: The teacher's, at the start (B, K).
        chain: In features, its noises J_phi eps; None where nobody asked.
    """

    pixels: Tensor
    losses: Losses
    first_logits: Tensor
    chain: Chain | None


class PixelSynthesiser(Baseline):
    """`langevin_steps` of a batch of chains a round, then `energy_steps` of the head.

    Args:
        teacher: On the device, in channels-last memory. With no BatchNorm r_BN is left out.
        recipe: What to do.
        device: Where.
        generator: Source of everything random here, on the device.
    """

    def __init__(
        self, teacher: Teacher, recipe: Recipe, device: Device, generator: torch.Generator
    ) -> None:
        super().__init__(teacher, recipe, device, generator)
        image = teacher.card.input
        self.shape = (image.channels, image.height, image.width)
        self._asked = self.known[:0]  # the classes of the round's images (B,)
        self.reader = FeatureReader(teacher)
        self.learner = HeadLearner(
            self.reader.width, self.num_classes, recipe, device.torch, generator
        )
        self.buffer = ReplayBuffer(
            self.num_classes,
            image.channels * image.height * image.width,
            capacity=-(-REPLAY_BATCHES * recipe.batch // len(self.known)),
            restart_probability=RESTART_PROBABILITY,
            generator=generator,
            device=device.torch,
        )

    def close(self) -> None:
        """Take the hooks off the teacher."""
        super().close()
        self.reader.remove()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the random state is the caller's."""
        return {
            **super().state_dict(),
            "chains": self.buffer.state_dict(),
            "learner": self.learner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            InputFileRefused: If it is of another method, or another teacher.
        """
        super().load_state_dict(state)
        self.buffer.load_state_dict(state["chains"])
        self.learner.load_state_dict(state["learner"])

    def _accept(self, labels: Tensor) -> Tensor:
        return labels == self._asked

    def _make(self, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        self._asked = labels = self._labels()
        policy = self.recipe.policy_gradient if steer and self.recipe.energy else "none"
        stored, slots = self.buffer.draw(labels, self.random)
        start = stored.view(-1, *self.shape).contiguous(memory_format=torch.channels_last)
        start = self._clip(start)
        walk = self._walk(start, labels, keep_chain=policy == "chain")
        self.buffer.store(labels, slots, walk.pixels.flatten(1))
        losses = dict(walk.losses)
        if self.recipe.energy:
            losses |= self._learn(start, walk, labels, student, policy)
        return self._images(walk.pixels).clamp(0, 1), losses

    @torch.no_grad()
    def _learn(
        self, start: Tensor, walk: Walk, labels: Tensor, student: nn.Module, policy: str
    ) -> Losses:
        """Let the head learn from images as the bank keeps them; its figures."""
        images = as_images(quantise(self._images(walk.pixels).clamp(0, 1)))
        with self.reader:
            logits = self.ask(self.teacher, images)
            features = self.reader.features(logits)
        self.teacher_passes += len(images)
        kept = logits.argmax(1) == labels
        log_probability = label_log_probability(logits, labels)
        self.learner.remember(features[kept], labels[kept], log_probability[kept])
        rewards = None
        if policy != "none":
            rewards = reward(logits, self.ask(student, images), labels)
        if rewards is not None and walk.chain is not None:
            # What the chain gained: its reward-to-go, with one baseline, at the start.
            before = self.ask(student, self._images(start))
            rewards = rewards - reward(walk.first_logits, before, labels)
        with torch.enable_grad():
            return self.learner.learn(features, labels, rewards, walk.chain)

    def _images(self, pixels: Tensor) -> Tensor:
        """Images in [0, 1], but for rounding, of normalised pixels u."""
        return self.teacher.mean + self.teacher.std * pixels

    def _clip(self, pixels: Tensor) -> Tensor:
        """Normalised pixels that an image in [0, 1] can have."""
        mean, std = self.teacher.mean, self.teacher.std
        return pixels.clamp(-mean / std, (1 - mean) / std)

    def _walk(self, pixels: Tensor, labels: Tensor, *, keep_chain: bool) -> Walk:
        """`langevin_steps` from u (B, C, H, W) on, towards images of int64 `labels` (B,)."""
        recipe = self.recipe
        scores: list[Score] = []
        tangents: list[Tensor] = []
        first_logits = pixels.new_empty(0)
        for step in range(recipe.langevin_steps):
            score = self._score(pixels, labels)
            noise = self._noise(*pixels.shape).to(memory_format=torch.channels_last)
            if step == 0:
                first_logits = score.logits
            if keep_chain:
                # Where the clamp acts, h has no say in the step, and the policy no gradient.
                free = score.gradient.abs() < GRADIENT_CLAMP
                tangents.append(self._tangent(pixels, noise * free))
            scores = [*scores, score] if keep_chain else [score]
            drift = score.gradient.clamp(-GRADIENT_CLAMP, GRADIENT_CLAMP)
            pixels = self._clip(
                pixels + recipe.generator_rate * drift + recipe.langevin_step_size * noise
            )
        chain = None
        if keep_chain:
            states = torch.stack([score.features for score in scores])
            # The estimator takes the states before each step only; the last repeats one.
            states = torch.cat((states, states[-1:]))
            chain = Chain(states, torch.stack(tangents), recipe.langevin_step_size)
        return Walk(pixels, scores[-1].losses, first_logits, chain)

    def _score(self, pixels: Tensor, labels: Tensor) -> Score:
        """grad_u log p at u, and what it is made of."""
        pixels = pixels.detach().requires_grad_()
        with torch.enable_grad(), self.reader:
            images = self._images(pixels)
            logits, statistics = self.measure(images)
            features = self.reader.features(logits)
            tilted = logits.gather(1, labels.unsqueeze(1)).squeeze(1)  # t(x)[y], (B,)
            tilted = tilted + self.learner.head(features, labels)
            prior = self.recipe.statistics_weight * statistics
            prior = prior + self.recipe.smoothness_weight * total_variation(images)
            energy = prior - tilted.mean()
            (gradient,) = torch.autograd.grad(-len(pixels) * energy, pixels)
        losses = {
            "statistics": statistics.detach(),
            "label": class_cross_entropy(logits, labels).detach(),
            "objective": energy.detach(),
        }
        return Score(gradient, logits.detach(), features.detach(), losses)

    def _tangent(self, pixels: Tensor, direction: Tensor) -> Tensor:
        """J_phi(u) v (B, D), by differentiating J_phi(u)^T w, which is linear in w, by w.

        Twice backwards and not once forwards: more layers can do it.
        """
        pixels = pixels.detach().requires_grad_()
        self.teacher_passes += len(pixels)
        with torch.enable_grad(), self.reader:
            features = self.reader.features(self.teacher(self._images(pixels)))
            weight = torch.zeros_like(features, requires_grad=True)
            (pulled,) = torch.autograd.grad(features, pixels, weight, create_graph=True)
            (tangent,) = torch.autograd.grad(pulled, weight, direction)
        return tangent

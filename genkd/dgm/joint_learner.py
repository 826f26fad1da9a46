"""How the energy-based model of pixels learns: a classifier and a density at once.

    learner = JointLearner(model, seed=0, random=generator)

The loss is -log p(y | x) - log p(x): the cross-entropy, and the contrast of f at public images with
f at images that its own Langevin chains reach, as in JEM (Grathwohl et al. 2020, arXiv:1912.03263,
eq. 8). An L2 penalty on f keeps it from drifting off (Du and Mordatch 2019, arXiv:1903.08689,
section 3.3). Chains persist, and start from Gaussians fitted to the public images of each class, as
in JEM++ (Yang and Ji 2021, arXiv:2109.09032), from which they need fewer steps than from noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genkd.dgm.joint_energy import langevin_images
from genkd.generative_model import GenerativeModel
from genkd.langevin import rank_within_class, standard_normal
from genkd.losses import maximum_likelihood_loss

LEARNING_RATE = 3e-4
LONGEST_GRADIENT = 1.0
PENALTY = 0.01
STEPS = 10
RESTARTED = 0.05
DATA_NOISE = 0.03
"""Deviation of the noise on public images: a density on a thin sheet has no slope towards it."""
REMEMBERED = 64
"""Public images a class, the latest seen, whose Gaussian the chains start from."""


class JointLearner:
    """Trains the pixel EBM and moves its chains, which the model keeps as its replay images.

    Args:
        model: Of family "pixel-ebm"; on the device.
        seed: Unused: it has no network beside the model's.
        random: Source of noise and chains, on the device.
    """

    def __init__(self, model: GenerativeModel, seed: int, random: torch.Generator) -> None:
        if model.pixel_energy is None:
            raise TypeError(f"a {model.card.family} has no energy of pixels to train")
        self.model, self.energy, self.random = model, model.pixel_energy, random
        self.optimizer = torch.optim.Adam(
            self.energy.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.999)
        )
        conditions = model.card.conditions
        shape = (conditions, REMEMBERED, *model.card.image_shape)
        self.remembered = torch.full(shape, 0.5, device=model.device)
        self.seen = torch.zeros(conditions, dtype=torch.int64, device=model.device)
        self.begun = torch.zeros(len(model.replay), dtype=torch.bool, device=model.device)

    def step(self, images: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """See `GenerativeLearner`."""
        self._remember(images, labels)
        drawn = self._draw(labels)
        noisy = images + DATA_NOISE * standard_normal(images, self.random)
        logits = self.energy(torch.cat((noisy, drawn)))
        real, fake = logits.chunk(2)
        f_real, f_fake = real.logsumexp(1), fake.logsumexp(1)
        likelihood = maximum_likelihood_loss(f_real, f_fake, penalty=PENALTY)
        classes = nn.functional.cross_entropy(real, labels)
        self.optimizer.zero_grad(set_to_none=True)
        (likelihood + classes).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.energy.parameters(), LONGEST_GRADIENT)
        self.optimizer.step()
        return {
            "mle": likelihood.detach(),
            "cross_entropy": classes.detach(),
            "energy_gap": (f_real.mean() - f_fake.mean()).detach(),
        }

    def _draw(self, labels: Tensor) -> Tensor:
        """The next states of chains of classes `labels` (B,), which are kept."""
        count, chains = len(labels), self.model.chains
        device = self.model.device
        # Each image of a class another chain: of two that wrote to one, chance would tell who won.
        shuffled = torch.rand(
            (len(self.seen), chains), generator=self.random, device=self.random.device
        ).argsort(1)
        rank = rank_within_class(labels, len(self.seen))
        kept = rank < chains  # the images of a class may be more than its chains
        chosen = shuffled.to(device)[labels, rank % chains]
        restart = torch.rand(count, generator=self.random, device=self.random.device) < RESTARTED
        slots = labels * chains + chosen
        fresh = self._fresh(labels)
        goes_on = (self.begun[slots] & ~restart.to(device)).reshape(-1, 1, 1, 1)
        start = torch.where(goes_on, self.model.replay[slots].float() / 255, fresh)
        drawn = langevin_images(self.energy, start, labels, self.random, steps=STEPS)
        self.model.replay[slots[kept]] = (255 * drawn[kept]).round().to(torch.uint8)
        self.begun[slots[kept]] = True
        return drawn

    def _fresh(self, labels: Tensor) -> Tensor:
        """Draws from N(mean, covariance) of the remembered images of each class, clamped.

        The mean plus the deviations from it, weighted by standard normals over sqrt(n), is such a
        draw exactly, and no covariance of pixels needs to be kept.
        """
        shape = self.model.card.image_shape
        images = torch.empty((len(labels), *shape), device=self.model.device)
        for label in sorted(set(labels.tolist())):
            of_class = labels == label
            # Of a class that was never seen the ring is still gray, and so is what is drawn.
            known = self.remembered[label, : max(1, int(self.seen[label]))]
            mean = known.mean(0)
            deviations = (known - mean).flatten(1)  # (n, C H W)
            weights = torch.randn(
                (int(of_class.sum()), len(deviations)),
                generator=self.random,
                device=self.random.device,
            ).to(images.device)
            drawn = weights @ deviations / len(deviations) ** 0.5
            images[of_class] = mean + drawn.reshape(-1, *shape)
        return images.clamp(0, 1)

    def _remember(self, images: Tensor, labels: Tensor) -> None:
        """Keep the images in the rings of their classes."""
        rank = rank_within_class(labels, len(self.seen))
        fits = rank < REMEMBERED  # of a larger batch the first: no two share a place
        slots = (self.seen[labels] + rank)[fits] % REMEMBERED
        self.remembered[labels[fits], slots] = images[fits]
        of_class = torch.bincount(labels, minlength=len(self.seen))
        self.seen += of_class.clamp_max(REMEMBERED)

    @torch.no_grad()
    def settle(self) -> None:
        """Fill the replay images that no chain has reached yet with starts of chains."""
        missing = (~self.begun).nonzero().squeeze(1)
        fresh = self._fresh(missing // self.model.chains)
        self.model.replay[missing] = (255 * fresh).round().to(torch.uint8)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "remembered": self.remembered,
            "seen": self.seen,
            "begun": self.begun,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("remembered", "seen", "begun"):
            getattr(self, name).copy_(state[name])

"""The latent energy-based model: a decoder whose prior N(0, I) is tilted by an EBM, per class.

    learner = LatentEnergyLearner(model, seed=0, random=generator)

Source: Pang et al. 2020, Learning latent space energy-based prior model (arXiv:2006.08205). There
both prior and posterior are sampled by short-run Langevin dynamics; here the posterior is inferred
by an encoder, as the paper proposes for amortised inference, since a walk of 20 steps through the
decoder costs 20 times as much as a training step without one. The bound is then that of `vae`, with

    KL(q(z | x, y) || p(z | y)) = KL(q || N(0, I)) - E_q f(z, y) + log Z(y),

whose log Z is learned by the contrast of inferred latents with those of the EBM's own chains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genkd.dgm.vae import VariationalLearner
from genkd.generative_model import GenerativeModel
from genkd.langevin import LangevinSampler, ReplayBuffer
from genkd.losses import maximum_likelihood_loss

LEARNING_RATE = 1e-3
STEPS = LangevinSampler(steps=10, step_size=0.3)  # persistent chains go on where they were
CHAINS = 512  # over all classes, at least 64 each


class LatentEnergyLearner(VariationalLearner):
    """Trains encoder, decoder and the EBM of the latents.

    Args:
        model: Of family "latent-ebm"; on the device.
        seed: Of the encoder's initial weights.
        random: Source of noise and chains, on the device.
    """

    def __init__(self, model: GenerativeModel, seed: int, random: torch.Generator) -> None:
        super().__init__(model, seed, random)
        if model.energy is None:
            raise TypeError(f"a {model.card.family} has no latent EBM to train")
        self.energy = model.energy
        self.energy_optimizer = torch.optim.Adam(
            self.energy.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.9)
        )
        conditions = model.card.conditions
        self.buffer = ReplayBuffer(
            conditions,
            model.card.latent_dim,
            capacity=max(64, CHAINS // conditions),
            generator=random,
            device=model.device,
        )

    def log_tilt(self, latents: Tensor, labels: Tensor) -> Tensor:
        """E_q f(z, y): the encoder is drawn to where the prior is."""
        tilt: Tensor = self.energy(latents, labels).mean()
        return tilt

    def learn_prior(self, latents: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One step of maximum likelihood of the inferred latents."""
        start, slots = self.buffer.draw(labels, self.random)
        self.energy.eval()  # a fixed function while it is walked on
        negatives = STEPS.sample(self.energy, start, labels, self.random)
        self.buffer.store(labels, slots, negatives)
        self.energy.train()
        f_positive, f_negative = self.energy(latents, labels), self.energy(negatives, labels)
        loss = maximum_likelihood_loss(f_positive, f_negative, penalty=0.01)
        self.energy_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.energy_optimizer.step()
        return {"mle": loss, "energy_gap": f_positive.mean() - f_negative.mean()}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            **super().state_dict(),
            "energy_optimizer": self.energy_optimizer.state_dict(),
            "buffer": self.buffer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        self.energy_optimizer.load_state_dict(state["energy_optimizer"])
        self.buffer.load_state_dict(state["buffer"])

"""The conditional variational auto-encoder, with a calibrated decoder.

    learner = VariationalLearner(model, seed=0, random=generator)
    figures = learner.step(images, labels, progress=0.2)

Sources: Kingma and Welling 2014 (arXiv:1312.6114, eq. 3 and appendix B: the bound and the KL
divergence of Gaussians), conditioned on labels as in Sohn et al. 2015 (Learning structured output
representation using deep conditional generative models); the deviation of the decoder is the one
that fits the batch best, which balances both terms by itself: Rybkin et al. 2021
(arXiv:2006.13202, section on the optimal sigma-VAE).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genkd.dgm.learner import strided_convolutions
from genkd.generative_model import GenerativeModel
from genkd.langevin import standard_normal
from genkd.student import learning_rate

LEARNING_RATE = 2e-3
SLOPE = 0.2
# The decoder's variance is not thought smaller than that of rounding to 8 bits.
SMALLEST_VARIANCE = 1 / (12 * 255**2)


class Encoder(nn.Module):
    """q(z | x, y): mean and log-variance of a Gaussian.

    Args:
        model: Whose latents to infer.
    """

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        card = model.card
        layers, activation, features = strided_convolutions(
            *card.image_shape, card.base_channels, SLOPE
        )
        self.body = nn.Sequential(*(part for layer in layers for part in (layer, activation)))
        self.conditions = card.conditions
        self.output = nn.Linear(features + self.conditions, 2 * card.latent_dim)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] and labels (B,) to mean and log-variance, each (B, d)."""
        features = self.body(2 * images - 1).flatten(1)
        one_hot = nn.functional.one_hot(labels, self.conditions).to(features.dtype)
        mean, log_variance = self.output(torch.cat((features, one_hot), dim=1)).chunk(2, dim=1)
        # Beyond these a latent says everything, or less than nothing; exp must not overflow.
        return mean, log_variance.clamp(-12, 4)


def divergence_from_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp log_variance) || N(0, I)) in nats, (B, d) to (B,), >= 0."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def calibrated_reconstruction(images: Tensor, decoded: Tensor) -> Tensor:
    """-log p(x | z) of a Gaussian decoder of the best deviation, mean over the batch, in nats.

    With the variance s^2 = mean square error of the batch, each image of D numbers costs
    D / 2 (log(2 pi s^2) + 1).

    Args:
        images: x (B, C, H, W).
        decoded: The decoder's mean, of the same shape.

    Returns:
        Scalar; its gradient is that of the square error over 2 s^2, as if s were constant.
    """
    variance = (images - decoded).square().mean().clamp_min(SMALLEST_VARIANCE)
    return images[0].numel() / 2 * (torch.log(2 * math.pi * variance) + 1)


class VariationalLearner:
    """Trains encoder and decoder on the evidence lower bound.

    Args:
        model: Of family "vae"; on the device.
        seed: Of the encoder's initial weights.
        random: Source of the noise, on the device.
    """

    def __init__(self, model: GenerativeModel, seed: int, random: torch.Generator) -> None:
        if model.decoder is None:
            raise TypeError(f"a {model.card.family} has no decoder to train")
        self.model, self.random = model, random
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.encoder = Encoder(model).to(model.device)
        self.optimizer = torch.optim.Adam(
            [*self.encoder.parameters(), *model.decoder.parameters()], lr=LEARNING_RATE
        )

    def step(self, images: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """See `GenerativeLearner`; figures in nats an image."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(LEARNING_RATE, progress)
        self.model.train()
        mean, log_variance = self.encoder(images, labels)
        latents = mean + (0.5 * log_variance).exp() * standard_normal(mean, self.random)
        reconstruction = calibrated_reconstruction(images, self.model.decode(latents, labels))
        divergence = divergence_from_normal(mean, log_variance).mean()
        bound = reconstruction + divergence - self.log_tilt(latents, labels)
        self.optimizer.zero_grad(set_to_none=True)
        bound.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        figures = {"bound": bound, "reconstruction": reconstruction, "divergence": divergence}
        figures |= self.learn_prior(latents.detach(), labels)
        self.model.eval()
        return {name: figure.detach() for name, figure in figures.items()}

    def log_tilt(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Mean log p(z | y) / N(z; 0, I), up to a constant: 0, for the prior is N(0, I)."""
        return latents.new_zeros(())

    def learn_prior(self, latents: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Fit the prior to inferred latents: there is nothing to fit in N(0, I)."""
        return {}

    def settle(self) -> None:
        """See `GenerativeLearner`; there is nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])

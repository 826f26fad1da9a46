"""The conditional generative adversarial network: hinge loss, spectral norm, projection.

    learner = AdversarialLearner(model, seed=0, random=generator)

Sources: Goodfellow et al. 2014 (arXiv:1406.2661); the layout of DCGAN, Radford et al. 2016
(arXiv:1511.06434); spectral normalisation, Miyato et al. 2018 (arXiv:1802.05957); the label as a
projection in the discriminator, Miyato and Koyama 2018 (arXiv:1802.05637, eq. 3); the hinge loss,
Lim and Ye 2017 (arXiv:1705.02894). Only the generator is kept in the prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from genkd.dgm.learner import strided_convolutions
from genkd.generative_model import GenerativeModel

GENERATOR_RATE = 5e-4
DISCRIMINATOR_RATE = 5e-4
MOMENTA = (0.5, 0.99)
SLOPE = 0.1


class Discriminator(nn.Module):
    """D(x, y) = w . phi(x) + e_y . phi(x): higher = more like a public image of class y.

    Args:
        model: Whose images to judge.
    """

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        card = model.card
        layers, activation, features = strided_convolutions(
            *card.image_shape, card.base_channels, SLOPE
        )
        self.body = nn.Sequential(
            *(part for layer in layers for part in (spectral_norm(layer), activation))
        )
        self.output = spectral_norm(nn.Linear(features, 1))
        self.embedding = spectral_norm(nn.Embedding(card.conditions, features))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] and labels (B,) to (B,)."""
        features = self.body(2 * images - 1).flatten(1)
        judged: Tensor = self.output(features).squeeze(1)
        judged = judged + (self.embedding(labels) * features).sum(1)
        return judged


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's: mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)); scalar, >= 0."""
    return nn.functional.relu(1 - real).mean() + nn.functional.relu(1 + fake).mean()


class AdversarialLearner:
    """Trains generator and discriminator in turn, one step each.

    Args:
        model: Of family "gan"; on the device.
        seed: Of the discriminator's initial weights.
        random: Source of the latents, on the device.
    """

    def __init__(self, model: GenerativeModel, seed: int, random: torch.Generator) -> None:
        if model.decoder is None:
            raise TypeError(f"a {model.card.family} has no generator to train")
        self.model, self.random = model, random
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.discriminator = Discriminator(model).to(model.device)
        self.generator_optimizer = torch.optim.Adam(
            model.decoder.parameters(), lr=GENERATOR_RATE, betas=MOMENTA
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=DISCRIMINATOR_RATE, betas=MOMENTA
        )

    def step(self, images: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """See `GenerativeLearner`; the rates are constant, for the game has no end."""
        self.model.train()
        latents = self.model.sample_latents(labels, self.random)
        drawn = self.model.decode(latents, labels)
        judged = self.discriminator(torch.cat((images, drawn.detach())), labels.repeat(2))
        loss = hinge_loss(*judged.chunk(2))
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.discriminator_optimizer.step()

        self.discriminator.requires_grad_(False)
        adversarial = -self.discriminator(drawn, labels).mean()
        self.generator_optimizer.zero_grad(set_to_none=True)
        adversarial.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        self.model.eval()
        real, fake = judged.detach().chunk(2)
        return {
            "discriminator": loss.detach(),
            "generator": adversarial.detach(),
            "told_apart": 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean()),
        }

    def settle(self) -> None:
        """See `GenerativeLearner`; there is nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])

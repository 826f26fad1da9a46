"""What learns in the pixel-space energy-based model: a small head on the frozen teacher's features.

    p(x | y)  is proportional to  exp(t(x)[y] + h(phi(x))[y]) exp(-lambda r_BN(x) - lambda' TV(x))

t are the teacher's logits, phi what its last layer sees, h the head. As everywhere in this package,
higher h = more likely. `genkd.pixel_synthesis` draws images from p; here h learns, of features that
are at hand, so that no image passes through the teacher for it:

- by maximum likelihood: positives are the newest images in the bank, all verified by the teacher,
  weighted by its confidence; negatives are those where the chains are now. An L2 penalty on h at
  both keeps it from drifting off: without it persistent contrastive divergence in pixels diverges
  within hundreds of steps;
- by policy gradient, see `genkd.policy_gradient`. Of a chain in pixels u,

      grad_theta <eps_k, grad_u h(phi(u))>  =  grad_theta <J_phi(u) eps_k, grad_phi h(phi)>

  so a chain of features with the noises J_phi eps_k gives the very same estimate.

Sources: JEM, Grathwohl et al. 2020 (arXiv:1912.03263), whose classifier is its own EBM; the L2
penalty, Du and Mordatch 2019 (arXiv:1903.08689, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from genkd import policy_gradient as pg
from genkd.errors import InputFileRefused
from genkd.generator import initialise_layers
from genkd.langevin import Chain
from genkd.losses import (
    maximum_likelihood_loss,
    self_normalised_weights,
)
from genkd.recipe import Recipe

HIDDEN = 128
# Batches' worth of images among the positives.
POSITIVE_BATCHES = 16


class EnergyHead(nn.Module):
    """h(phi)[y]: one hidden SiLU layer on normalised features; zero before anything is learnt.

    Features are normalised to mean 0 and deviation 1 each, since their scale differs a hundredfold
    between networks; how far an image excites the teacher t(x)[y] says already.

    Args:
        width: D of the features.
        num_classes: K.
        generator: Source of the initial weights.
    """

    def __init__(self, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, HIDDEN)
        self.output = nn.Linear(HIDDEN, num_classes)
        initialise_layers([self.hidden], generator)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Higher = more likely.

        Args:
            features: phi (B, D).
            labels: y int64 (B,).

        Returns:
            h (B,), float32.
        """
        with torch.autocast(features.device.type, enabled=False):
            normal = functional.layer_norm(features.float(), features.shape[1:])
            every: Tensor = self.output(functional.silu(self.hidden(normal)))  # (B, K)
        return every.gather(1, labels.unsqueeze(1)).squeeze(1)


class HeadLearner:
    """The head, its optimiser and the positives it learns from.

    Args:
        width: D of the features.
        num_classes: K.
        recipe: Its `energy_*`, `likelihood_*`, `positive_*` and `policy_*` keys.
        device: Where.
        generator: Source of everything random here, on the device.

    Attributes:
        positives: Of the newest verified images: features (N, D), labels (N,), log p_T(y | x) (N,).
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        recipe: Recipe,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        self.recipe, self.random, self.num_classes = recipe, generator, num_classes
        self.head = EnergyHead(width, num_classes, generator).to(device)
        self.optimizer = torch.optim.Adam(
            self.head.parameters(), lr=recipe.energy_rate, betas=(0.5, 0.9)
        )
        self.positives = (
            torch.empty(0, width, device=device),
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, device=device),
        )

    def remember(self, features: Tensor, labels: Tensor, log_probability: Tensor) -> None:
        """Verified images that entered the bank, as positives; the oldest make room.

        Args:
            features: phi (B, D).
            labels: int64 (B,).
            log_probability: log p_T(y | x) (B,).
        """
        keep = min(POSITIVE_BATCHES * self.recipe.batch, self.recipe.bank_images)
        old = self.positives
        self.positives = (
            torch.cat((old[0], features))[-keep:],
            torch.cat((old[1], labels))[-keep:],
            torch.cat((old[2], log_probability))[-keep:],
        )

    def learn(
        self,
        features: Tensor,
        labels: Tensor,
        rewards: Tensor | None = None,
        chain: Chain | None = None,
    ) -> dict[str, Tensor]:
        """`energy_steps` Adam steps on the likelihood and the policy gradient.

        Args:
            features: phi (B, D) of the images where the chains are now.
            labels: Their classes, int64 (B,).
            rewards: Rewards (B,) of those images, or of a chain what it gained; None: no policy
                gradient.
            chain: The chains in features, noises J_phi eps; None: the stationary estimator.

        Returns:
            Figures, detached scalars; none before there is a positive.
        """
        if not len(self.positives[0]):
            return {}
        effective = self._effective_share(features, labels)
        advantages = None
        if rewards is not None:
            advantages = pg.standardise_within_class(rewards, labels, self.num_classes)
            if self.recipe.policy_placebo:
                advantages = pg.permute_within_class(advantages, labels, self.random)
            # Policy gradient alone would tilt towards ever fewer images; it rests below the floor.
            advantages = advantages * (effective > self.recipe.effective_share)
        figures: dict[str, Tensor] = {}
        for _ in range(self.recipe.energy_steps):
            figures = self._step(features, labels, advantages, chain)
        return {**figures, "effective_share": effective}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "positives": list(self.positives),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            InputFileRefused: If it is of another teacher.
        """
        features, labels, log_probability = state["positives"]
        if features.shape[1:] != self.positives[0].shape[1:]:
            raise InputFileRefused(
                "the checkpoint's features are of another teacher",
                hint="resume with the teacher of that run, or start anew with --fresh",
            )
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        on = self.positives[0].device
        self.positives = (features.to(on), labels.to(on), log_probability.to(on))

    def _step(
        self, features: Tensor, labels: Tensor, advantages: Tensor | None, chain: Chain | None
    ) -> dict[str, Tensor]:
        likelihood, gap, negative = self.likelihood(features, labels)
        figures = {"mle": likelihood.detach(), "energy_gap": gap.detach()}
        total = self.recipe.likelihood_weight * likelihood
        if advantages is not None:
            if chain is None:
                policy = pg.stationary_loss(negative, advantages)
            else:
                policy = pg.chain_loss(self.head, chain, labels, advantages)
            policy = self.recipe.policy_weight * policy
            figures["policy_gradient"] = policy.detach()
            total = total + policy
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return figures

    def likelihood(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_MLE with its penalty, the gap of h between positives and negatives, and h- (B,).

        As many positives as negatives are drawn; each class among them has the same weight.
        """
        count = len(self.positives[0])
        drawn = torch.randint(
            count, (len(features),), generator=self.random, device=self.random.device
        ).to(features.device)
        of_positives, classes, log_probability = (part[drawn] for part in self.positives)
        weights = self_normalised_weights(
            log_probability, self.recipe.positive_temperature, classes, self.num_classes
        )
        positive, negative = self.head(of_positives, classes), self.head(features, labels)
        loss = maximum_likelihood_loss(positive, negative, weights)
        return loss, (weights * positive).sum() - negative.mean(), negative

    @torch.no_grad()
    def _effective_share(self, features: Tensor, labels: Tensor) -> Tensor:
        """How evenly exp h weighs the images of a class: effective share (Kish 1965), 0..1."""
        weights = self_normalised_weights(
            self.head(features, labels), 1.0, labels, self.num_classes
        )
        member = functional.one_hot(labels, self.num_classes).to(weights.dtype)  # (B, K)
        squares = (weights.square() @ member).clamp_min(torch.finfo(weights.dtype).tiny)
        count = member.sum(0)
        shares = (weights @ member).square() / squares / count.clamp_min(1)
        return shares[count > 0].mean()

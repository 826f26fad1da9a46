"""The learned prior over latents: chains, maximum likelihood and policy gradient of one EBM.

    prior = LatentPrior(embeddings, recipe, device, generator)
    proposal = prior.draw(labels, generator)                       # z- of p(z | y)
    ... images of proposal.latents, what the teacher and the student say of them ...
    figures = prior.learn(proposal, positives, reward_of, rewards, generator)  # a round of learning

MLE says "looks like what the teacher verifies", policy gradient "useful to this student"; see
`losses.maximum_likelihood_loss` and `policy_gradient`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genkd import policy_gradient as pg
from genkd.device import Device
from genkd.energy import LatentEnergy
from genkd.langevin import Chain, LangevinSampler, ReplayBuffer
from genkd.losses import effective_sample_size, maximum_likelihood_loss
from genkd.recipe import Recipe

# Policies that are learnt from whole chains, which start afresh.
OF_CHAINS = ("chain", "greedy", "pathwise")
# Draws from N(0, I) by which the tilt of the prior is judged, and the most classes they are of: of
# fewer than some fifty draws a class even a single one that counts would be a large share.
TILT_DRAWS = 512
TILT_CLASSES = 10


@dataclass(frozen=True)
class Proposal:
    """Latents that the prior proposes.

    Attributes:
        latents: z- (B, d), detached.
        labels: int64 (B,).
        chain: The whole chain, where the chain policy gradient needs it.
    """

    latents: Tensor
    labels: Tensor
    chain: Chain | None


class LatentPrior:
    """p(z | y), proportional to exp f(z, y) N(z; 0, I), and how it learns.

    Args:
        embeddings: float32 (K, e), one row a class.
        recipe: Its `energy_*`, `langevin_*` and `policy_*` keys.
        device: Where to compute.
        generator: Source of the initial weights and chains.
    """

    def __init__(
        self, embeddings: Tensor, recipe: Recipe, device: Device, generator: torch.Generator
    ) -> None:
        self.recipe = recipe
        self.num_classes = len(embeddings)
        self.energy = LatentEnergy(recipe.latent_dim, embeddings, generator=generator)
        self.energy.to(device.torch).eval()
        self.optimizer = torch.optim.Adam(
            self.energy.parameters(), lr=recipe.energy_rate, betas=(0.5, 0.9)
        )
        self.sampler = LangevinSampler(recipe.langevin_steps, recipe.langevin_step_size)
        self.buffer = ReplayBuffer(
            self.num_classes,
            recipe.latent_dim,
            # Two batches' worth, so that a chain is not walked on every round.
            capacity=max(64, 2 * -(-recipe.batch // self.num_classes)),
            generator=generator,
            device=device.torch,
        )

    def draw(self, labels: Tensor, generator: torch.Generator) -> Proposal:
        """Latents for int64 `labels` (B,): the next states of the persistent chains.

        With a policy gradient of chains the walk starts afresh from N(0, I), for which alone those
        estimators are exact.
        """
        if self.recipe.policy_gradient in OF_CHAINS:
            shape = (len(labels), self.recipe.latent_dim)
            start = torch.randn(shape, generator=generator, device=labels.device)
            chain = self.sampler.chain(self.energy, start, labels, generator)
            return Proposal(chain.states[-1], labels, chain)
        start, slots = self.buffer.draw(labels, generator)
        latents = self.sampler.sample(self.energy, start, labels, generator)
        self.buffer.store(labels, slots, latents)
        return Proposal(latents, labels, None)

    def learn(
        self,
        proposal: Proposal,
        positives: tuple[Tensor, Tensor, Tensor],
        reward_of: Callable[[Tensor, Tensor], Tensor] | None,
        rewards: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """`energy_steps` Adam steps on the likelihood and the policy gradient.

        Args:
            proposal: The z- of this round.
            positives: Latents (N, d), labels (N,) and self-normalised weights (N,) of images that
                the teacher verified; if all weights are zero, the likelihood rests.
            reward_of: Rewards (B,) of latents and labels, differentiable in the latents where the
                recipe says "pathwise". None: no policy gradient this time.
            rewards: Rewards (B,) of the images that came of the proposal.
            generator: Source of the draws that judge the tilt.

        Returns:
            Figures, detached scalars: the losses, the gap of f, gradient norms, effective share.
        """
        effective = self._effective_share(generator)
        steer = reward_of is not None and self.recipe.policy_gradient != "none"
        advantages = None
        if steer and reward_of is not None:
            advantages = self._advantages(proposal, reward_of, rewards, generator)
            # Policy gradient alone would narrow the prior to a point; it rests below the floor.
            advantages = advantages * (effective > self.recipe.effective_share)
        figures: dict[str, Tensor] = {}
        self.energy.train()
        for _ in range(self.recipe.energy_steps):
            figures = self._step(proposal, positives, advantages)
        self.energy.eval()
        return {**figures, "effective_share": effective}

    def forget(self, generator: torch.Generator) -> None:
        """Start the chains anew: the generator was re-initialised. f stays as it has learnt."""
        self.buffer.reset(generator)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "energy": self.energy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "buffer": self.buffer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.energy.load_state_dict(state["energy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffer.load_state_dict(state["buffer"])

    def _advantages(
        self,
        proposal: Proposal,
        reward_of: Callable[[Tensor, Tensor], Tensor],
        rewards: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """(B,), or (K, B) of a chain; of "pathwise" the reward's own gradient (B, d)."""
        chain, labels = proposal.chain, proposal.labels
        if self.recipe.policy_gradient == "pathwise":
            latents = proposal.latents.detach().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(reward_of(latents, labels).sum(), latents)
            # In the same unit as the other estimators: deviations of the class's rewards.
            scale = pg.scale_within_class(rewards, labels, self.num_classes).unsqueeze(1)
            return slope * scale
        if chain is None:
            values = pg.standardise_within_class(rewards, labels, self.num_classes)
        else:
            # One segment is a single baseline, at the start: exact, and one batch of images only.
            stride = len(chain.noises) // self.recipe.policy_segments
            known = [reward_of(state, labels) for state in chain.states[:-1:stride]]
            greedy = self.recipe.policy_gradient == "greedy"
            credit = pg.immediate_reward if greedy else pg.reward_to_go
            # What a greedy step gains must be the chain's own, not that of the search after it; to
            # a reward-to-go earlier states are only a baseline.
            last = reward_of(proposal.latents, labels) if greedy else rewards
            values = credit(torch.stack((*known, last)), stride=stride)
            values = pg.standardise_within_class(values, labels, self.num_classes)
        if self.recipe.policy_placebo:
            values = pg.permute_within_class(values, labels, generator)
        return values

    def _step(
        self,
        proposal: Proposal,
        positives: tuple[Tensor, Tensor, Tensor],
        advantages: Tensor | None,
    ) -> dict[str, Tensor]:
        latents, labels, weights = positives
        f_positive = self.energy(latents, labels)
        f_negative = self.energy(proposal.latents, proposal.labels)
        likelihood = maximum_likelihood_loss(f_positive, f_negative, weights)
        likelihood = likelihood * (weights.sum() > 0)  # no positive: nothing to tell apart
        figures = {
            "mle": likelihood.detach(),
            "energy_gap": ((weights * f_positive).sum() - f_negative.mean()).detach(),
        }
        parameters = list(self.energy.parameters())
        total = self.recipe.likelihood_weight * likelihood
        if advantages is not None:
            policy = self._policy_loss(proposal, f_negative, advantages)
            policy = self.recipe.policy_weight * policy
            figures["policy_gradient"] = policy.detach()
            norms = [_gradient_norm(loss, parameters) for loss in (policy, likelihood)]
            figures["pg_over_mle"] = norms[0] / norms[1].clamp_min(1e-12)
            total = total + policy
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return figures

    def _policy_loss(self, proposal: Proposal, f_negative: Tensor, advantages: Tensor) -> Tensor:
        if proposal.chain is None:
            return pg.stationary_loss(f_negative, advantages)
        of_chain = pg.pathwise_loss if self.recipe.policy_gradient == "pathwise" else pg.chain_loss
        return of_chain(self.energy, proposal.chain, proposal.labels, advantages)

    @torch.no_grad()
    def _effective_share(self, generator: torch.Generator) -> Tensor:
        """How much of N(0, I) the tilted prior still covers: effective share of fresh draws, 0..1.

        The effective sample size (Kish 1965) of weights exp f over N(0, I), the mean of all classes
        or of `TILT_CLASSES` of them, drawn anew each time.
        """
        device = next(self.energy.parameters()).device
        z = torch.randn(
            TILT_DRAWS, self.recipe.latent_dim, generator=generator, device=generator.device
        ).to(device)
        judged = min(self.num_classes, TILT_CLASSES)
        place = torch.arange(TILT_DRAWS, device=device) % judged
        labels = place
        if judged < self.num_classes:
            order = torch.randperm(self.num_classes, generator=generator, device=generator.device)
            labels = order[:judged].to(device)[place]
        f = self.energy(z, labels)
        member = torch.nn.functional.one_hot(place, judged).bool()  # (N, C)
        per_class = f.unsqueeze(1).masked_fill(~member, -torch.inf).softmax(dim=0)  # (N, C)
        shares = [effective_sample_size(per_class[:, k]) for k in range(judged)]
        return torch.stack(shares).mean() / (TILT_DRAWS / judged)


def _gradient_norm(loss: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    squares = [g.square().sum() for g in gradients if g is not None]
    return torch.stack(squares).sum().sqrt()

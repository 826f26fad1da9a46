"""Langevin sampling of the latent EBM, and the buffer that keeps its chains between rounds.

    z' = z + (s^2 / 2) grad_z [f(z, y) - |z|^2 / 2] + s eps,    eps ~ N(0, I)

    sampler = LangevinSampler(steps=30, step_size=0.4)
    start, slots = buffer.draw(labels, generator)
    z = sampler.sample(energy, start, labels, generator)
    buffer.store(labels, slots, z)

Sources: the unadjusted Langevin algorithm, Welling and Teh 2011; persistent chains with 5 %
re-initialisation, Du and Mordatch 2019 (arXiv:1903.08689, section 3.2).

The algorithm is unadjusted: with a quadratic log-density of precision q it settles at variance
1 / (q (1 - q s^2 / 4)), so s = 0.4 overstates the prior's variance by 4 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from genkd.energy import Tilt, score
from genkd.errors import ConfigurationError, InputFileRefused


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) of the shape, dtype and device of `like`.

    Drawn on the generator's device and moved, so that a CPU generator gives the same numbers
    whatever the device of the model, and a CUDA generator costs no transfer.
    """
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)


@dataclass(frozen=True)
class Chain:
    """A whole Langevin chain, as the chain policy gradient needs it.

    Attributes:
        states: z_0 .. z_K, (K + 1, B, d), detached.
        noises: eps_1 .. eps_K, (K, B, d): `noises[k - 1]` led from z_{k-1} to z_k.
        step_size: s of these steps.
    """

    states: Tensor
    noises: Tensor
    step_size: float


@dataclass(frozen=True)
class LangevinSampler:
    """How far and how finely to walk.

    Attributes:
        steps: K, Langevin steps a draw, at least 1.
        step_size: s, in units of the prior's standard deviation, in (0, 2): at 2 the walk on the
            prior alone stops being stable.
    """

    steps: int = 30
    step_size: float = 0.4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigurationError(
                f"{self.steps} Langevin steps: at least 1 is needed",
                hint="20 to 60 are usual",
            )
        if not 0 < self.step_size < 2:
            raise ConfigurationError(
                f"a Langevin step size of {self.step_size} is outside (0, 2)",
                hint="0.1 to 0.5 are usual",
            )

    def sample(self, f: Tilt, z: Tensor, condition: Tensor, generator: torch.Generator) -> Tensor:
        """z_K after `steps` steps from `z`.

        Args:
            f: The tilt; higher = more likely. Its parameters receive no gradient.
            z: Start (B, d).
            condition: Labels int64 (B,) or embeddings (B, e).
            generator: Source of the noise.

        Returns:
            (B, d), detached.
        """
        z = z.detach()
        # One normalisation of the weights of f serves all steps.
        with parametrize.cached():
            for _ in range(self.steps):
                z = self._step(f, z, condition, standard_normal(z, generator))
        return z

    def chain(self, f: Tilt, z: Tensor, condition: Tensor, generator: torch.Generator) -> Chain:
        """As `sample`, with the same draws, keeping every state and noise.

        The chain policy gradient is exact only if `z` does not depend on f: a fresh N(0, I), not
        the replay buffer.
        """
        states, noises = [z.detach()], []
        with parametrize.cached():
            for _ in range(self.steps):
                noises.append(standard_normal(z, generator))
                states.append(self._step(f, states[-1], condition, noises[-1]))
        return Chain(torch.stack(states), torch.stack(noises), self.step_size)

    def _step(self, f: Tilt, z: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        drift = 0.5 * self.step_size**2 * score(f, z, condition)
        return z + drift + self.step_size * noise


def rank_within_class(labels: Tensor, num_classes: int) -> Tensor:
    """How many of its class came before each of `labels`, int64 (B,): 0, 1, 2 ... in each class."""
    member = torch.nn.functional.one_hot(labels, num_classes)  # (B, K)
    rank: Tensor = (member.cumsum(0) * member).sum(1) - 1
    return rank


class ReplayBuffer:
    """Persistent chains, a ring of them for every class, started from N(0, I).

    Drawing the same labels with a generator in the same state gives the same chains.

    Args:
        num_classes: K.
        latent_dim: d.
        capacity: Chains a class. Of a batch with more samples of a class than that, those beyond
            start afresh each time and are not kept.
        restart_probability: Share of drawn chains that start afresh from N(0, I).
        generator: Source of the first chains.
        device: Where the chains are kept.

    Raises:
        ConfigurationError: If a size is below 1, or the probability outside [0, 1].
    """

    def __init__(
        self,
        num_classes: int,
        latent_dim: int,
        *,
        capacity: int = 256,
        restart_probability: float = 0.05,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(num_classes, latent_dim, capacity) < 1 or not 0 <= restart_probability <= 1:
            raise ConfigurationError(
                f"a replay buffer of {num_classes} classes, {capacity} chains of {latent_dim} "
                f"dimensions, restart probability {restart_probability}",
                hint="sizes must be at least 1, the probability in [0, 1] (0.05 is usual)",
            )
        self.capacity = capacity
        self.restart_probability = restart_probability
        self._chains = torch.empty(num_classes, capacity, latent_dim, device=device)
        self.reset(generator)

    def reset(self, generator: torch.Generator) -> None:
        """Start every chain afresh: after the generator network was re-initialised, say."""
        self._chains.copy_(standard_normal(self._chains, generator))

    def draw(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where the next walk starts.

        Args:
            labels: int64 (B,).
            generator: Source of the choice of chains and of the restarts.

        Returns:
            Starts (B, d), and slots int64 (B,) to hand back to `store`: those of one class differ,
            and a sample beyond the ring's capacity has -1.
        """
        num_classes = len(self._chains)
        draw_on = generator.device
        # A window of the ring, at a random place for each class: distinct slots at no cost.
        offset = torch.randint(self.capacity, (num_classes,), generator=generator, device=draw_on)
        restart = torch.rand(len(labels), generator=generator, device=draw_on)
        rank = rank_within_class(labels, num_classes)
        slots = (offset.to(labels.device)[labels] + rank) % self.capacity
        beyond = rank >= self.capacity
        stored = self._chains[labels, slots]
        # Drawn whether used or not: the random stream must not depend on the outcome.
        fresh = standard_normal(stored, generator)
        restarted = (restart.to(stored.device) < self.restart_probability) | beyond
        starts = torch.where(restarted.unsqueeze(1), fresh, stored)
        return starts, slots.masked_fill(beyond, -1)

    def store(self, labels: Tensor, slots: Tensor, z: Tensor) -> None:
        """Keep `z` (B, d) as the present states of the chains that `draw` gave."""
        if len(slots) > self.capacity:  # else none is beyond, and a GPU need not be waited for
            kept = slots >= 0
            labels, slots, z = labels[kept], slots[kept], z[kept]
        self._chains[labels, slots] = z.detach().to(self._chains.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """The chains, for a checkpoint (a copy)."""
        return {"chains": self._chains.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`.

        Raises:
            InputFileRefused: If it is not of a buffer of this shape.
        """
        chains = state.get("chains")
        if chains is None or chains.shape != self._chains.shape:
            raise InputFileRefused(
                "the checkpoint's replay buffer does not fit this run",
                hint="resume with the settings of that run, or start anew with --fresh",
            )
        self._chains.copy_(chains)

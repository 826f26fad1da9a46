"""Latents of a frozen decoder whose images the teacher knows: they mean the same for good.

found = FoundLatents(num_classes=10, latent_dim=32, device=device)
found.add(latents, labels, values)
latents, labels, values = found.draw(256, generator)      # as many of each class that has any
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genkd.errors import InputFileRefused
from genkd.langevin import rank_within_class

# In all, and of each class at least: rings of the last ones found.
CAPACITY, LEAST_A_CLASS = 16_384, 64


class FoundLatents:
    """A ring of latents for each class, and what the teacher said of each.

    Args:
        num_classes: K.
        latent_dim: d.
        device: Where they are kept.
    """

    def __init__(self, num_classes: int, latent_dim: int, device: torch.device) -> None:
        self.capacity = max(LEAST_A_CLASS, CAPACITY // num_classes)
        self._latents = torch.zeros(num_classes, self.capacity, latent_dim, device=device)
        self._values = torch.zeros(num_classes, self.capacity, device=device)
        self._added = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def counts(self) -> Tensor:
        """How many were ever found of each class, int64 (K,)."""
        return self._added

    def add(self, latents: Tensor, labels: Tensor, values: Tensor) -> None:
        """Keep a batch.

        Args:
            latents: float (B, d).
            labels: int64 (B,), what the teacher says of their images.
            values: float (B,), v, how good each is.
        """
        rank = rank_within_class(labels, len(self._added))
        fits = rank < self.capacity  # of a larger batch the first: no two share a place
        slots = (self._added[labels] + rank)[fits] % self.capacity
        self._latents[labels[fits], slots] = latents.detach()[fits]
        self._values[labels[fits], slots] = values.detach()[fits].float()
        of_class = torch.bincount(labels, minlength=len(self._added))
        self._added += of_class.clamp_max(self.capacity)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` of those kept, with replacement, as many of each class that has any.

        Returns:
            Latents (count, d), labels int64 (count,), values (count,).
        """
        present = self._added.nonzero().flatten()
        on = present.device
        labels = present[torch.arange(count, device=on) % len(present)]
        share = torch.rand(count, generator=generator, device=generator.device).to(on)
        slots = (share * self._added[labels].clamp_max(self.capacity)).long()
        return self._latents[labels, slots], labels, self._values[labels, slots]

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint (copies)."""
        return {
            "latents": self._latents.clone(),
            "values": self._values.clone(),
            "added": self._added.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`.

        Raises:
            InputFileRefused: If it is of other classes or latents.
        """
        kept = {"latents": self._latents, "values": self._values, "added": self._added}
        if state.keys() != kept.keys() or any(state[n].shape != t.shape for n, t in kept.items()):
            raise InputFileRefused(
                "the checkpoint's latents do not fit this run", hint="start anew with --fresh"
            )
        for name, tensor in kept.items():
            tensor.copy_(state[name])

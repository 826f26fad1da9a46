"""Rejection sampling of latents: the ablation that asks the EBM's question without an EBM.

    latents = rejection_sample(log_weight, labels, 64, candidates=4, generator=random)

The likelihood weighs its positives by exp(v(z, y) / beta), v <= 0 being what the teacher says of
the image of z. Drawing from N(0, I) and keeping a draw with probability exp(v / beta) samples
p(z | y) proportional to exp(v / beta) N(z; 0, I) (von Neumann 1951), at the price of an image a
candidate. It is what the EBM would learn of positives drawn from N(0, I); those of GenKD have moved
with the generator, so the two densities are kin, not the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def rejection_sample(
    log_weight: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor,
    latent_dim: int,
    *,
    candidates: int,
    generator: torch.Generator,
) -> Tensor:
    """For each label the first of its candidates that passes u < exp(log_weight).

    The number of candidates is bounded, so that a round takes the same time whatever the teacher
    says: where none passes, that one is taken which came nearest, the greatest log_weight - log u.

    Args:
        log_weight: Maps latents (B, d) and labels (B,) to (B,), at most 0.
        labels: int64 (B,).
        latent_dim: d.
        candidates: Draws for each label, at least 1.
        generator: Source of the draws.

    Returns:
        (B, d), detached.
    """
    on = generator.device
    best = torch.full((len(labels),), -torch.inf, device=labels.device)
    chosen = torch.zeros(len(labels), latent_dim, device=labels.device)
    for _ in range(candidates):
        z = torch.randn(len(labels), latent_dim, generator=generator, device=on).to(labels.device)
        u = torch.rand(len(labels), generator=generator, device=on).to(labels.device)
        margin = log_weight(z, labels) - u.clamp_min(torch.finfo(u.dtype).tiny).log()
        # One that passed (best > 0) stays; before that, a nearer one takes its place.
        better = (best <= 0) & (margin > best)
        chosen = torch.where(better.unsqueeze(1), z, chosen)
        best = torch.where(better, margin, best)
    return chosen.detach()

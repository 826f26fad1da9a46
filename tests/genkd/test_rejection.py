"""Rejection sampling against a density whose moments are known."""

from __future__ import annotations

import torch
from torch import Tensor

from genkd.rejection import rejection_sample

COUNT, TARGET = 20_000, 1.5
LABELS = torch.zeros(COUNT, dtype=torch.int64)


def towards_target(latents: Tensor, labels: Tensor) -> Tensor:
    return -(latents[:, 0] - TARGET).square() / 2


def drawn(candidates: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return rejection_sample(towards_target, LABELS, 2, candidates=candidates, generator=random)


def test_samples_are_of_the_weighted_density() -> None:
    # N(0, 1) exp(-(z - c)^2 / 2) is N(c / 2, 1 / 2); the other coordinate stays N(0, 1).
    latents = drawn(candidates=60)
    error = 5 / COUNT**0.5
    assert abs(float(latents[:, 0].mean()) - TARGET / 2) < error
    assert abs(float(latents[:, 0].var()) - 0.5) < 2 * error
    assert abs(float(latents[:, 1].mean())) < error
    assert abs(float(latents[:, 1].var()) - 1) < 2 * error


def test_one_candidate_is_no_test_at_all() -> None:
    latents = drawn(candidates=1)
    assert abs(float(latents[:, 0].mean())) < 5 / COUNT**0.5


def test_where_none_passes_the_nearest_is_taken() -> None:
    def hopeless(latents: Tensor, labels: Tensor) -> Tensor:
        return -1e4 * (1 + (latents[:, 0] < 0))  # none passes; half of them are worse by far

    random = torch.Generator().manual_seed(0)
    latents = rejection_sample(hopeless, LABELS, 1, candidates=4, generator=random)
    assert abs(float((latents < 0).float().mean()) - 0.5**4) < 0.01


def test_the_same_seed_gives_the_same_latents() -> None:
    assert torch.equal(drawn(3, seed=1), drawn(3, seed=1))
    assert not torch.equal(drawn(3, seed=1), drawn(3, seed=2))

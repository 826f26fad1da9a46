"""Image quality: figures worked out by hand, and what they say of images that are known."""

from __future__ import annotations

import math
from pathlib import Path

import image_quality as iq
import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.spatial.distance import pdist
from torch import Tensor

from genkd.teacher import load_teacher


def drawn(count: int, seed: int, width: int = 4, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


def test_the_frechet_distance_is_that_of_two_gaussians() -> None:
    real, made = drawn(200, 0), 1.5 * drawn(150, 1) + 0.3
    a, b = real.double().numpy(), made.double().numpy()
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert iq.frechet_distance(real, made) == pytest.approx(expected, rel=1e-4)


def test_the_kernel_distance_of_whole_sets_is_the_unbiased_estimate() -> None:
    """With no more images than a subset holds, every subset is the whole set."""
    real, made = drawn(40, 0).double().numpy(), drawn(40, 1, shift=0.5).double().numpy()

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / 4 + 1) ** 3

    def others(k: np.ndarray) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    expected = others(kernel(real, real)) + others(kernel(made, made))
    expected -= 2 * kernel(real, made).mean()
    found = iq.kernel_distance(torch.from_numpy(real).float(), torch.from_numpy(made).float())
    assert found == pytest.approx(expected, rel=1e-3)
    assert found > 0.1


def test_figures_leave_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first = iq.kernel_distance(drawn(300, 0), drawn(300, 1))
    iq.inception_style_score(drawn(50, 0))
    assert torch.equal(torch.rand(1), wanted)
    assert first == iq.kernel_distance(drawn(300, 0), drawn(300, 1))


@pytest.mark.parametrize(
    ("logits", "score"),
    [
        (torch.zeros(8, 3), 1.0),
        (100 * torch.eye(3).repeat(4, 1), 3.0),
        (100 * torch.eye(3)[:1].repeat(8, 1), 1.0),
    ],
    ids=["unsure of all", "sure of three classes", "sure of one class"],
)
def test_the_score_counts_the_classes_that_are_told_apart(logits: Tensor, score: float) -> None:
    assert iq.inception_style_score(logits) == pytest.approx(score, rel=1e-4)


def test_density_and_coverage_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iq, "NEIGHBOURS", 1)
    # Radii of the real: 1, 1, 8. Of the made, 0.5 lies in the first two, 11 in the third, 30 in 0.
    density, coverage = iq.density_and_coverage(column(0, 1, 9), column(0.5, 11, 30))
    assert density == pytest.approx((2 + 1 + 0) / 3)
    assert coverage == pytest.approx(1.0)
    _, coverage = iq.density_and_coverage(column(0, 1, 9), column(0.5, 0.6))
    assert coverage == pytest.approx(2 / 3)


def test_radii_reach_the_fifth_neighbour() -> None:
    assert iq.radii(torch.arange(11.0).unsqueeze(1))[[0, 5]].tolist() == [5, 3]


def test_class_distance_is_the_mean_of_the_classes_own() -> None:
    features = drawn(30, 0)
    labels = torch.tensor([0] * 20 + [1] * 9 + [2])  # of the third class there is one only
    expected = (pdist(features[:20]).mean() + pdist(features[20:29]).mean()) / 2
    assert iq.class_distance(features, labels) == pytest.approx(expected, rel=1e-5)
    assert math.isnan(iq.class_distance(features[:2], torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("features", "number"),
    [
        (torch.zeros(10, 1), 1.0),
        (100 * torch.arange(10.0).unsqueeze(1), 10.0),
        (100 * (torch.arange(10) % 2).float().unsqueeze(1), 2.0),
    ],
    ids=["one and the same", "all different", "two kinds"],
)
def test_the_effective_number_counts_images_that_differ(features: Tensor, number: float) -> None:
    assert iq.effective_number(features, torch.tensor(1.0)) == pytest.approx(number, rel=1e-3)


def test_real_images_are_better_than_their_copies_and_those_than_noise(
    tiny_teacher: Path, tiny_images: Path
) -> None:
    space = iq.FeatureSpace(load_teacher(tiny_teacher))
    with np.load(tiny_images) as kept:
        images = torch.from_numpy(kept["images"])[:, None]
        labels = torch.from_numpy(kept["labels"])
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (30, 1, 16, 16), generator=random).to(torch.uint8)
    real = space.look(images[:30])
    copies = images[30:33].repeat(10, 1, 1, 1)
    found = {
        name: iq.quality(real, labels[:30], space.look(made), labels[30:])
        for name, made in (("other", images[30:]), ("copies", copies), ("noise", noise))
    }
    assert all(tuple(figures) == iq.FIGURES for figures in found.values())
    for figure in ("fid", "kid"):
        assert found["other"][figure] < found["noise"][figure]
    for figure in ("score", "coverage"):
        assert found["other"][figure] > found["noise"][figure]
    for figure in ("coverage", "effective", "diversity"):
        assert found["other"][figure] > found["copies"][figure]
    assert found["copies"]["diversity"] == 0
    assert found["other"]["diversity"] == pytest.approx(1, abs=0.3)

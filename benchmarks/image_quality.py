"""How good synthetic images look to a classifier that was trained on real ones, in seven figures.

    space = FeatureSpace(load_teacher("judge.safetensors"))
    figures = quality(space.look(real), real_labels, space.look(made), made_labels)

All are taken in the classifier's penultimate features and class probabilities, so no network is
downloaded, and none says anything about a person's eye. FID, KID and the Inception-style score are
torchmetrics' own, over these features in place of Inception's. FID and the score depend on how many
images there are: compare equal numbers only.

| figure | better | what |
|---|---|---|
| fid | lower | Frechet distance of two Gaussians (Heusel et al. 2017, arXiv:1706.08500) |
| kid | lower | squared mean discrepancy, cubic kernel (Binkowski et al. 2018, arXiv:1801.01401) |
| score | higher | exp of information of image and class (Salimans et al. 2016, arXiv:1606.03498) |
| density | higher | real neighbourhoods an image lies in (Naeem et al. 2020, arXiv:2002.09797) |
| coverage | higher | share of real images with a made one in their neighbourhood (ibid.) |
| diversity | 1 | distance of two images of one class, in that of two real ones |
| effective | higher | images that differ: Vendi score (Friedman, Dieng 2022, arXiv:2210.02410) |

For `effective` the kernel is exp(-d^2 / 2 r^2) with r the median distance of a real image to its
fifth neighbour: what is nearer than real images are to one another counts as one image.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genkd.bank import as_images
from genkd.features import FeatureReader
from genkd.teacher import Teacher

NEIGHBOURS = 5  # k of Naeem et al.
KID_SUBSETS = 20
KID_SUBSET_SIZE = 100
FIGURES = ("fid", "kid", "score", "density", "coverage", "diversity", "effective")


@dataclass(frozen=True)
class Look:
    """What a classifier sees in N images.

    Attributes:
        features: float32 (N, D).
        logits: float32 (N, K).
    """

    features: Tensor
    logits: Tensor


class FeatureSpace:
    """The features and the logits of one classifier.

    Args:
        classifier: On the CPU.
    """

    def __init__(self, classifier: Teacher) -> None:
        self.classifier = classifier
        self._reader = FeatureReader(classifier)

    @torch.no_grad()
    def look(self, images: Tensor) -> Look:
        """Features and logits of uint8 images (N, C, H, W)."""
        features, logits = [], []
        for part in images.split(500):
            with self._reader:
                logits.append(self.classifier(as_images(part)))
                features.append(self._reader.features(logits[-1]))
        return Look(torch.cat(features), torch.cat(logits))


class _Given(nn.Module):
    """Hands on features that are known already; torchmetrics wants a module and its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def quality(real: Look, real_labels: Tensor, made: Look, made_labels: Tensor) -> dict[str, float]:
    """Every figure of `FIGURES`, by name.

    Args:
        real: Of the reference images, in random order, at least as many as made ones.
        real_labels: Their classes, int64 (M,).
        made: Of the images in question, N > 5.
        made_labels: The classes they were made for, int64 (N,).
    """
    few = real.features[: len(made.features)]
    density, coverage = density_and_coverage(few, made.features)
    return {
        "fid": frechet_distance(real.features, made.features),
        "kid": kernel_distance(real.features, made.features),
        "score": inception_style_score(made.logits),
        "density": density,
        "coverage": coverage,
        "diversity": class_distance(made.features, made_labels)
        / class_distance(real.features, real_labels),
        "effective": effective_number(made.features, radii(few).median()),
    }


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """FID of features (M, D) and (N, D)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Given(real.shape[1]))
    # Rank-deficient covariances, of fewer images than features, need the digits.
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(made.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, made: Tensor) -> float:
    """KID of features (M, D) and (N, D): the mean over subsets, drawn with a fixed seed."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KID_SUBSET_SIZE, len(real), len(made))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps the features
        metric = KernelInceptionDistance(
            _Given(real.shape[1]), subsets=KID_SUBSETS, subset_size=size
        )
    metric.update(real, real=True)
    metric.update(made, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(metric.compute()[0])


def inception_style_score(logits: Tensor) -> float:
    """The exp of the mean KL(p(y|x) || p(y)) of logits (N, K): 1..K, in one split."""
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the features again; no deviation of one
        metric = InceptionScore(_Given(logits.shape[1]), splits=1)
        metric.update(logits)
        with torch.random.fork_rng(devices=[]):
            return float(metric.compute()[0])


def radii(features: Tensor) -> Tensor:
    """Distance (N,) of each to its k-th neighbour among the others."""
    distances = _distances(features, features)
    return distances.kthvalue(min(NEIGHBOURS + 1, len(features)), dim=1).values  # itself is first


def density_and_coverage(real: Tensor, made: Tensor) -> tuple[float, float]:
    """Of features (M, D) and (N, D): >= 0, near 1 if both are alike; and 0..1."""
    inside = _distances(real, made) <= radii(real).unsqueeze(1)  # (M, N)
    density = inside.float().sum(0).mean() / NEIGHBOURS
    return float(density), float(inside.any(1).float().mean())


def class_distance(features: Tensor, labels: Tensor) -> float:
    """Mean distance of two of the same class, averaged over classes with two at least."""
    means = []
    for label in labels.unique():
        own = features[labels == label]
        if len(own) > 1:
            means.append(torch.pdist(own).mean())
    return float(torch.stack(means).mean()) if means else float("nan")


def effective_number(features: Tensor, radius: Tensor) -> float:
    """The exp of the entropy of the eigenvalues of the kernel matrix / N: 1..N."""
    squared = _distances(features, features).double().square()
    kernel = torch.exp(-squared / (2 * radius.double().square().clamp_min(1e-12)))
    values = torch.linalg.eigvalsh(kernel / len(features)).clamp_min(1e-15)
    return float(torch.exp(-(values * values.log()).sum()))


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean (M, N), without the matrix product that rounds small ones away."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")

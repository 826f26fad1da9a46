"""Whether a classifier is right as often as it says it is.

    error, bins = calibration_error(confidence, right)

The expected calibration error is that of Guo et al. 2017 (arXiv:1706.04599, section 2, eq. 3):
confidence is the largest softmax probability, in 15 bins of equal width, each closed on the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence falls into one fifteenth of [0, 1].

    Attributes:
        count: How many there are.
        confidence: Their mean confidence, in [0, 1]; None without images.
        accuracy: The part of them that is classified rightly; None without images.
    """

    count: int
    confidence: float | None
    accuracy: float | None


def calibration_error(
    confidence: Tensor, right: Tensor, bins: int = CALIBRATION_BINS
) -> tuple[float, tuple[CalibrationBin, ...]]:
    """Expected calibration error: sum over bins of |B| / N |accuracy(B) - confidence(B)|.

    Guo et al. 2017, eq. 3. Bin m holds the confidences in ((m - 1) / bins, m / bins].

    Args:
        confidence: Floats (N,) in [0, 1].
        right: bool (N,), whether the classification is right.
        bins: M.

    Returns:
        The error in [0, 1], and the bins.
    """
    confidence, right = confidence.double(), right.double()
    inner = torch.arange(1, bins, dtype=torch.float64) / bins
    index = torch.bucketize(confidence, inner)  # right=False: a confidence of 1/15 is in bin 0
    count = torch.bincount(index, minlength=bins)
    confidences = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, confidence)
    hits = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, right)
    # |B| / N |acc - conf| = |sum of hits - sum of confidences| / N, so empty bins add nothing.
    error = float((hits - confidences).abs().sum() / len(confidence))
    made = (
        CalibrationBin(n, c / n if n else None, h / n if n else None)
        for n, c, h in zip(count.tolist(), confidences.tolist(), hits.tolist(), strict=True)
    )
    return error, tuple(made)

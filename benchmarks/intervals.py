"""Means, paired differences and correlations of few runs, with bootstrap intervals.

Percentile bootstrap (Efron 1979). Up to seven values all resamples are counted, so the interval is
exact and needs no seed; beyond that 10,000 are drawn with a fixed seed. It cannot repair too few
seeds: of three runs a 95 % interval is just their least and greatest value, which holds the true
mean in about three cases of four. So say the number of seeds beside every interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT_UP_TO = 7  # 7^7 = 823,543 resamples
DRAWN = 10_000
LEVEL = 0.95
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and between what it lies.

    Attributes:
        value: The estimate on all values.
        low: Lower end of the 95 % interval.
        high: Upper end.
        deviation: Standard deviation of the values (divided by n - 1); NaN where it means nothing.
        count: n.
    """

    value: float
    low: float
    high: float
    deviation: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; that of one value says nothing."""
        return self.count > 1 and (self.low > 0 or self.high < 0)


def mean(values: Sequence[float]) -> Interval:
    """The mean of n >= 1 values."""
    x = np.asarray(values, np.float64)
    if len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"{list(values)} has no mean")
    low, high = _ends(x[_resamples(len(x))].mean(1))
    deviation = float(x.std(ddof=1)) if len(x) > 1 else float("nan")
    return Interval(float(x.mean()), float(low), float(high), deviation, len(x))


def paired_difference(first: dict[int, float], second: dict[int, float]) -> Interval | None:
    """Mean of `first` - `second` over the seeds that both have; None if they share none."""
    seeds = sorted(first.keys() & second.keys())
    return mean([first[seed] - second[seed] for seed in seeds]) if seeds else None


def pearson(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Correlation of two figures of the same n >= 3 things; NaN where one does not vary."""
    return _correlation(x, y, lambda table: table)


def spearman(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Correlation of their ranks, ties sharing the mean of their ranks."""
    return _correlation(x, y, _ranks)


def _correlation(
    x: Sequence[float], y: Sequence[float], transform: Callable[[Values], Values]
) -> Interval:
    """Resamples in which a figure does not vary have no correlation, and are left out."""
    pairs = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])  # (2, n)
    count = pairs.shape[1]
    if count < 3 or not np.isfinite(pairs).all():
        raise ValueError("a correlation needs three pairs of numbers at least")
    index = _resamples(count) if count <= EXACT_UP_TO - 1 else _drawn(count)
    value = _rows_correlation(*(transform(row[None]) for row in pairs))[0]
    spread = _rows_correlation(*(transform(row[index]) for row in pairs))
    spread = spread[np.isfinite(spread)]
    low, high = _ends(spread) if len(spread) else (np.nan, np.nan)
    return Interval(float(value), low, high, float("nan"), count)


def _ends(resampled: Values) -> tuple[float, float]:
    """Quantiles that are values themselves: of all resamples nothing is left to interpolate."""
    ends = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return float(ends[0]), float(ends[1])


def _rows_correlation(x: Values, y: Values) -> Values:
    """Pearson's r of each row of x and y (R, n)."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    length = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    usable = length > 1e-12 * np.abs(x).max(initial=1e-300) * np.abs(y).max(initial=1e-300)
    return np.where(usable, (x * y).sum(1) / np.where(usable, length, 1), np.nan)


def _ranks(table: Values) -> Values:
    """Ranks from 0 along each row (R, n); ties get the mean of theirs."""
    below = (table[:, :, None] > table[:, None, :]).sum(2)
    same = (table[:, :, None] == table[:, None, :]).sum(2)
    ranks: Values = below + (same - 1) / 2
    return ranks


def _resamples(count: int) -> NDArray[np.int64]:
    """Indices (R, count): every resample, or as many as are drawn."""
    if count <= EXACT_UP_TO:
        return np.array(list(itertools.product(range(count), repeat=count)), np.int64)
    return _drawn(count)


def _drawn(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, count, (DRAWN, count))

"""Intervals and correlations against numbers worked by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from intervals import mean, paired_difference, pearson, spearman
from scipy import stats

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=15)
Y = 0.6 * X + RANDOM.normal(size=15)
TIED_X = [1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 4.0, 0.0]
TIED_Y = [2.0, 1.0, 1.0, 5.0, 4.0, 4.0, 9.0, 0.0]


def test_three_values_span_their_own_interval() -> None:
    # Each of the 27 resamples counts: one is all least, which is 3.7 % > 2.5 %.
    found = mean([80.0, 83.0, 81.5])
    assert (found.value, found.low, found.high, found.count) == (81.5, 80.0, 83.0, 3)
    assert found.deviation == pytest.approx(1.5)


def test_one_value_has_no_deviation_and_an_empty_interval() -> None:
    found = mean([80.0])
    assert (found.low, found.high) == (80.0, 80.0)
    assert np.isnan(found.deviation)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]], ids=str)
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="has no mean"):
        mean(values)


@pytest.mark.parametrize("count", [5, 15], ids=["all resamples", "drawn resamples"])
def test_the_interval_of_a_mean_is_that_of_scipy(count: int) -> None:
    found = mean(list(X[:count]))
    expected = stats.bootstrap(
        (X[:count],), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.04)
    assert found.high == pytest.approx(expected.high, abs=0.04)


def test_differences_are_paired_by_seed() -> None:
    # Unpaired, the intervals overlap by far; paired, the first is always one better.
    first, second = {0: 50.0, 1: 70.0, 2: 90.0, 7: 0.0}, {2: 89.0, 0: 49.0, 1: 69.0, 8: 99.0}
    found = paired_difference(first, second)
    assert found is not None
    assert (found.value, found.low, found.high, found.count) == (1.0, 1.0, 1.0, 3)
    assert found.excludes_zero
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_an_interval_with_zero_inside_decides_nothing() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 2.0, 2: 2.0})
    assert found is not None
    assert not found.excludes_zero
    one = paired_difference({0: 3.0}, {0: 2.0})
    assert one is not None
    assert not one.excludes_zero


@pytest.mark.parametrize(("x", "y"), [(X, Y), (TIED_X, TIED_Y)], ids=["continuous", "with ties"])
def test_correlations_are_those_of_scipy(x: list[float], y: list[float]) -> None:
    assert pearson(x, y).value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(pearson, stats.pearsonr), (spearman, stats.spearmanr)]
)
def test_intervals_of_correlations_are_those_of_scipy(ours: object, theirs: object) -> None:
    found = ours(X, Y)  # type: ignore[operator]
    expected = stats.bootstrap(
        (X, Y),
        lambda a, b: theirs(a, b).statistic,  # type: ignore[operator]
        paired=True,
        vectorized=False,
        n_resamples=3000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.06)
    assert found.high == pytest.approx(expected.high, abs=0.06)


def test_a_figure_that_does_not_vary_has_no_correlation() -> None:
    assert np.isnan(pearson([1, 1, 1, 1], [1, 2, 3, 4]).value)
    assert np.isnan(spearman([1, 1, 1, 1], [1, 2, 3, 4]).value)


def test_two_pairs_are_no_correlation() -> None:
    with pytest.raises(ValueError, match="three pairs"):
        pearson([1, 2], [1, 2])

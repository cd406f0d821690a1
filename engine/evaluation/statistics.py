"""Paired comparison of two methods on the same cases: Wilcoxon test, effect, Holm's correction, bootstrap interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Comparison:
    """Comparison of two methods.

    Args:
        difference: mean over the cases of the first method's score minus the second's.
        low, high: bootstrap interval of that mean, 95 % confidence.
        p: two-sided p-value of the Wilcoxon signed-rank test.
        median: median of the differences.
        rank_biserial: matched-pairs rank-biserial correlation, the effect that belongs to the test.
        cases: number of the cases.
    """

    difference: float
    low: float
    high: float
    p: float
    median: float
    rank_biserial: float
    cases: int


def compare(differences: NDArray[np.float64]) -> Comparison:
    """Compare two methods by the differences of their scores on the same cases.

    Args:
        differences: score of each case under the first method minus that under the second; NaN, a case without one of
            the scores, is left out. They are rounded to nine digits, so that rounding hides no ties.
    Shape: (cases,).
    """
    differences = np.round(differences[~np.isnan(differences)], 9)
    mean, median = (float(of(differences)) if differences.size else math.nan for of in (np.mean, np.median))
    effect = rank_biserial(differences)
    interval = bootstrap_interval(differences)
    return Comparison(mean, *interval, paired_wilcoxon(differences), median, effect, differences.size)


def paired_wilcoxon(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of the Wilcoxon signed-rank test of paired differences; 1 if all are zero."""
    if not differences.size:
        return math.nan
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Compute the matched-pairs rank-biserial correlation: the ranks' share in favour minus that against.

    The ranks are those of the Wilcoxon signed-rank test, without zeros: 1 if all differences are positive, -1 if all
    are negative; 0 if all are zero. Source: Kerby, "The simple difference formula", Comprehensive Psychology, 2014.
    """
    if not differences.size:
        return math.nan
    ranks = stats.rankdata(np.abs(differences[differences != 0]))
    return float(ranks @ np.sign(differences[differences != 0]) / max(1, ranks.sum()))


def bootstrap_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, by the percentiles of a seeded bootstrap over the cases."""
    if differences.size < 2:
        return math.nan, math.nan
    found = stats.bootstrap(
        (differences,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=0
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests by Holm's step-down method (Scandinavian Journal of Statistics, 1979).

    NaN, a test that could not be made, does not count and stays NaN.
    """
    made = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(made):
        largest = max(largest, min(1.0, (len(made) - rank) * p))
        corrected[place] = largest
    return corrected

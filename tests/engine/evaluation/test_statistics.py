"""Paired statistics, against values computed by hand or from other sources."""

import math

import numpy as np
import pytest
from scipy import stats

from engine.evaluation.statistics import bootstrap_interval, compare, holm, paired_wilcoxon, rank_biserial


def test_wilcoxon_of_differences_without_ties():
    """Of 2^8 equally likely signs, 1 gives the rank sum 0, and the test is two-sided."""
    assert paired_wilcoxon(np.arange(1.0, 9)) == pytest.approx(2 / 2**8)
    # Rank sums up to 3 of the negative differences: {}, {1}, {2}, {3}, {1, 2}.
    assert paired_wilcoxon(np.array([1.0, 2, -3, 4, 5, 6, 7, 8])) == pytest.approx(2 * 5 / 2**8)


@pytest.mark.parametrize(("differences", "p"), [(np.zeros(5), 1.0), (np.array([]), math.nan)])
def test_wilcoxon_without_information(differences, p):
    assert paired_wilcoxon(differences) == pytest.approx(p, nan_ok=True)


def test_rank_biserial_is_the_difference_of_rank_shares():
    """Ranks 1, 2.5, 2.5, 4 without the zero: 7.5 in favour, 2.5 against."""
    assert rank_biserial(np.array([0.1, 0.2, -0.2, 0.5, 0])) == pytest.approx((7.5 - 2.5) / 10)
    assert rank_biserial(np.array([3.0, 1, 2])) == 1
    assert rank_biserial(np.array([-3.0, -1])) == -1
    assert rank_biserial(np.zeros(3)) == 0
    assert math.isnan(rank_biserial(np.array([])))


def test_the_effect_is_that_of_the_test():
    """SciPy's statistic is the smaller of the two rank sums."""
    differences = np.random.default_rng(0).normal(0.4, 1, 30)
    against = stats.wilcoxon(differences).statistic
    assert rank_biserial(differences) == pytest.approx(1 - 2 * against / (30 * 31 / 2))


def test_holm_steps_down():
    """The example of Holm's method: 0.01 x 4, 0.013 x 3, 0.014 x 2 (raised to the one before), 0.19 x 1."""
    assert holm([0.01, 0.19, 0.014, 0.013]) == pytest.approx([0.04, 0.19, 0.04, 0.04])
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_holm_leaves_out_tests_that_could_not_be_made():
    assert holm([0.02, math.nan, 0.01]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)
    assert holm([]) == []


def test_bootstrap_covers_the_mean_at_its_confidence():
    """Of 200 samples of a known mean, about 5 % of the intervals miss it; the spread of that count is 3."""
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.normal(0.3, 1, 40))
        missed += not low < 0.3 < high
    assert 2 <= missed <= 20


def test_bootstrap_of_one_case_or_of_equal_cases():
    assert all(map(math.isnan, bootstrap_interval(np.array([0.1]))))
    assert bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_comparison_leaves_out_cases_without_a_score():
    nan = math.nan
    found = compare(np.array([0.9, 0.8, nan, 0.7]) - np.array([0.8, 0.6, 0.5, nan]))
    assert found.difference == pytest.approx(0.15)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.2)
    assert (found.median, found.rank_biserial, found.cases) == (pytest.approx(0.15), 1, 2)
    assert math.isnan(compare(np.array([nan])).difference)


def test_rounding_hides_no_ties():
    """0.3 - 0.2 and 0.2 - 0.1 differ in their last digits; as ties they share a rank, as do the zeros."""
    differences = np.array([0.3 - 0.2, 0.2 - 0.1, 0.1 - 0.2, 0.5 - 0.4, 0.7 - 0.7, 0.1 + 0.2 - 0.3])
    exact = np.array([0.1, 0.1, -0.1, 0.1, 0, 0])
    assert len(set(differences)) > 3
    assert compare(differences).p == paired_wilcoxon(exact) != paired_wilcoxon(differences)

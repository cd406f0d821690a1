"""Comparison of folders of predictions: signs, classes that count, Holm over all rows, the picture."""

import math

import numpy as np
import pytest

from engine.evaluation.comparison import COMPARED, compare_folders, draw_comparison
from engine.evaluation.scores import METRICS

CASES = 12


def scores_of(shift, structures=3):
    """Make scores of cases that differ from those of another shift by the shift, in all structures and metrics."""
    spread = np.random.default_rng(0).uniform(0.3, 0.6, (CASES, structures, len(METRICS)))
    return list(spread + shift)


def test_differences_are_those_from_the_reference():
    rows = compare_folders({"b": scores_of(0.2), "a": scores_of(0.1), "c": scores_of(0.0)}, "a", classes=2)
    assert [(row.method, row.metric) for row in rows] == [(name, metric) for name in "bc" for metric in COMPARED]
    differences = [row.comparison.difference for row in rows]
    assert differences == pytest.approx([0.1] * len(COMPARED) + [-0.1] * len(COMPARED))
    assert {row.comparison.cases for row in rows} == {CASES}


def test_p_values_are_corrected_for_all_rows():
    """All differences have one sign: of 2^12 equally likely signs two are as extreme, times the number of rows."""
    rows = compare_folders({"a": scores_of(0.1), "b": scores_of(0.2), "c": scores_of(0.0)}, "a", classes=2)
    assert [row.comparison.p for row in rows] == pytest.approx([2 * len(COMPARED) * 2 / 2**CASES] * len(rows))


def test_regions_and_classes_that_one_folder_lacks_do_not_count():
    """Only the first class of two has a score in both folders for the first case."""
    one, other = scores_of(0.1), scores_of(0.0)
    one[0][1], one[0][2] = math.nan, 100
    other[0][0] -= 0.3
    (dice, *_) = compare_folders({"other": other, "one": one}, "other", classes=2)
    assert dice.comparison.difference == pytest.approx((0.4 + 0.1 * (CASES - 1)) / CASES)


def test_a_case_without_any_class_is_left_out():
    one, other = scores_of(0.1), scores_of(0.0)
    one[0][:] = math.nan
    (dice, *_) = compare_folders({"one": one, "other": other}, "other", classes=2)
    assert dice.comparison.cases == CASES - 1


def test_every_case_is_a_line_through_its_points():
    scores = {"a": scores_of(0.1), "b": scores_of(0.2), "x/c": scores_of(0.0)}
    figure = draw_comparison(scores, classes=2)
    views = figure.axes
    assert len(views) == len(COMPARED)
    for view, metric in zip(views, COMPARED, strict=True):
        *cases, mean = view.lines
        index = list(METRICS).index(metric)
        assert len(cases) == CASES
        for line, *tables in zip(cases, *scores.values(), strict=True):
            assert line.get_ydata() == pytest.approx([table[:2, index].mean() for table in tables])
        assert [text.get_text() for text in view.get_xticklabels()] == ["a", "b", "x/c"]
        assert mean.get_ydata()[0] == pytest.approx(np.mean([line.get_ydata()[0] for line in cases]))
    assert "12 cases" in figure.get_suptitle()

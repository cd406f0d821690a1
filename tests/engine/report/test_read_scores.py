"""Tables of scores: read as they were written, or refused."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine.evaluation.metrics import DiceTable
from engine.report.report import warn_of_scores
from engine.report.score_sections import show_scores, summarise, tabulate_cases, tabulate_measures
from engine.report.scores import DiceScores, read_dice, read_scores
from engine.runtime.errors import InputError

SCORES = """case,class,dice,hd95_mm,absent_from,method
one,liver,0.5,3.5,,a
one,spleen,,,both,a
two,liver,0.75,inf,,a
two,spleen,0.25,9,label,a
"""


@pytest.fixture
def dice(tmp_path):
    table = DiceTable(["liver", "spleen"], ["both"])
    table.add("one", np.array([0.5, math.nan, 0.5]))
    table.add("two", np.array([0.8, 0.6, 0.7]))
    table.add("none", np.array([math.nan] * 3))
    table.write(tmp_path)
    return read_dice(tmp_path / "dice.csv")


def test_dice_is_read_without_the_row_of_means(dice):
    assert (dice.structures, dice.cases) == (["liver", "spleen", "both"], ["one", "two", "none"])
    np.testing.assert_array_equal(dice.dice[0], [0.5, math.nan, 0.5])
    np.testing.assert_allclose(dice.means, [0.5, 0.7, math.nan])
    assert dice.ranked() == [0, 1]


def test_the_mean_of_the_classes_is_that_of_test_seg(dice):
    _, table, _ = show_scores(dice, {"both"})
    assert table.rows[0][:3] == ["liver", "2", "0.650"]
    assert table.rows[-1][2] == "0.625"  # of 0.65 and 0.6, without the region


def test_cases_are_listed_from_the_worst(dice):
    table = tabulate_cases(dice)
    assert table.rows == [["one", "0.500", "-", "0.500", "0.500"], ["two", "0.800", "0.600", "0.700", "0.700"]]


def test_a_summary_of_nothing_and_of_one():
    assert summarise(np.array([math.nan])) == ["0", "-", "-", "-", "-", "-"]
    assert summarise(np.array([0.5])) == ["1", "0.500", "-", "0.500", "0.500", "0.500"]
    assert summarise(np.array([0.5, 0.7]))[2] == "0.141"


def test_columns_of_words_are_no_measures_whatever_they_hold(tmp_path):
    (tmp_path / "scores.csv").write_text("case,class,dice,absent_from,method\none,liver,0.5,,5\n")
    assert read_scores(tmp_path / "scores.csv").measures == ["dice"]


def test_measures_are_averaged_where_they_are_finite(tmp_path):
    (tmp_path / "scores.csv").write_text(SCORES)
    scores = read_scores(tmp_path / "scores.csv")
    assert scores.measures == ["dice", "hd95_mm"]
    table = tabulate_measures(scores)
    assert table.header == ["class", "cases", "Dice", "HD95, mm"]
    assert table.rows == [["liver", "2", "0.625", "3.5"], ["spleen", "1", "0.25", "9"]]
    dice = scores.to_dice(["liver"])
    assert (dice.cases, dice.structures, dice.means.tolist()) == (["one", "two"], ["liver", "spleen"], [0.5, 0.75])
    assert scores.to_dice([]).means.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("dice.csv", "", "cannot be read as a table"),
        ("dice.csv", "case,liver,mean\n", "holds no Dice of cases"),
        ("dice.csv", "id,liver,mean\na,1,1\nmean,1,1\n", "holds no Dice of cases"),
        ("dice.csv", "case,liver,mean\na,high,1\nmean,1,1\n", "found 'high', expected a number"),
        ("scores.csv", "case,class,iou\na,liver,1\n", "holds no scores of cases"),
        ("scores.csv", "case,class,dice\na,liver,high\n", "found 'high', expected a number"),
        ("scores.csv", "case,class,dice\na,liver,1\na,liver,0\n", "found liver of a twice"),
    ],
)
def test_other_tables_are_refused(tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=found):
        (read_dice if name == "dice.csv" else read_scores)(tmp_path / name)


def test_missed_and_absent_classes_are_one_warning_each():
    dice = np.array([[0.5, 0, math.nan, 0, math.nan], [math.nan, 0, math.nan, 0, 0.1]])
    scores = DiceScores(Path("dice.csv"), ["liver", "spleen", "aorta", "veins", "bladder"], ["one", "two"], dice, dice)
    assert list(warn_of_scores(SimpleNamespace(dice=scores), None)) == [
        "Never found, with a Dice of 0 in every case: spleen, veins.",
        "In no label and no prediction, so without a Dice: aorta.",
    ]

"""Dice compared with counts by hand, the rule for absent classes, and the table."""

import json
import math

import numpy as np
import pytest

from engine.data.labels import IGNORED_INDEX
from engine.evaluation.metrics import DiceTable, dice_by_structure, mean_over_cases, mean_over_classes

LABEL = np.array([0, 0, 1, 1, 1, 2, 2, 0], np.uint8).reshape(2, 2, 2)
PREDICTION = np.array([0, 1, 1, 1, 0, 2, 2, 3], np.uint8).reshape(2, 2, 2)


def test_dice_of_each_foreground_class():
    dice = dice_by_structure(PREDICTION, LABEL, [[1], [2], [3], [4]])
    assert dice[:3].tolist() == pytest.approx([2 * 2 / 6, 1, 0])  # class 3 is predicted but not in the label
    assert math.isnan(dice[3])  # class 4 is in neither of them


def test_a_region_is_the_union_of_its_classes():
    """Predicting one class of a region where the label has another is right for the region."""
    label, prediction = LABEL.copy(), PREDICTION.copy()
    prediction[prediction == 1] = 2
    dice = dice_by_structure(prediction, label, [[1], [2], [3], [1, 2]])
    assert dice.tolist() == pytest.approx([0, 2 * 2 / 7, 0, 2 * 4 / 10])


def test_ignored_voxels_are_not_scored():
    label, wrong = LABEL.copy(), PREDICTION.copy()
    label[0, 0, 0] = label[1, 1, 0] = IGNORED_INDEX
    wrong[0, 0, 0], wrong[1, 1, 0] = 2, 1  # anything may be predicted there
    scored = [1, 2, 3, 4, 5, 7]
    expected = dice_by_structure(*(volume.ravel()[scored][:, None] for volume in (PREDICTION, LABEL)), [[1], [2], [3]])
    assert np.array_equal(dice_by_structure(wrong, label, [[1], [2], [3]]), expected)


def test_regions_are_columns_outside_the_mean(tmp_path):
    table = DiceTable(["liver", "tumour"], ["liver and tumour"])
    table.add("one", np.array([0.5, 0.25, 1.0]))
    table.write(tmp_path)
    assert (tmp_path / "dice.csv").read_text().splitlines()[:2] == [
        "case,liver,tumour,liver and tumour,mean",
        "one,0.5,0.25,1.0,0.375",
    ]
    assert json.loads((tmp_path / "dice.json").read_text())["mean"]["regions"] == {"liver and tumour": 1.0}
    assert table.means() == {"mean": 0.375, "liver": 0.5, "tumour": 0.25, "liver and tumour": 1.0}


def test_absent_classes_are_left_out_of_the_means():
    dice = [np.array([0.5, np.nan, np.nan]), np.array([1.0, 0.25, np.nan])]
    means = mean_over_cases(dice)
    assert means[:2].tolist() == [0.75, 0.25]
    assert math.isnan(means[2])
    assert mean_over_classes(means) == 0.5
    assert math.isnan(mean_over_classes(np.array([np.nan])))


def test_table_prints_and_writes_the_same_numbers(tmp_path):
    table = DiceTable(["liver", "spleen"])
    table.add("one", np.array([0.5, np.nan]))
    table.add("two", np.array([0.75, 1.0]))
    table.write(tmp_path)
    assert (tmp_path / "dice.csv").read_text().splitlines() == [
        "case,liver,spleen,mean",
        "one,0.5,,0.5",
        "two,0.75,1.0,0.875",
        "mean,0.625,1.0,0.8125",
    ]
    assert json.loads((tmp_path / "dice.json").read_text()) == {
        "mean": {"liver": 0.625, "spleen": 1.0, "mean": 0.8125},
        "cases": {
            "one": {"liver": 0.5, "spleen": None, "mean": 0.5},
            "two": {"liver": 0.75, "spleen": 1.0, "mean": 0.875},
        },
    }
    assert [line.split() for line in table.as_text().splitlines()] == [
        ["case", "liver", "spleen", "mean"],
        ["one", "0.500", "-", "0.500"],
        ["two", "0.750", "1.000", "0.875"],
        ["mean", "0.625", "1.000", "0.812"],
    ]
    assert table.mean() == 0.8125
    assert table.structure_means() == {"liver": 0.625, "spleen": 1.0}

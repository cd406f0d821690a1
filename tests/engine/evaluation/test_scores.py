"""Scores of label maps: counted by hand, the rule for absent structures, ignored voxels, summaries."""

import math

import numpy as np
import pytest

from engine.data.header_checks import Grid
from engine.data.labels import IGNORED_INDEX
from engine.evaluation.metrics import dice_by_structure, mean_over_cases, mean_over_classes
from engine.evaluation.scores import METRICS, absent_from, score_structures, summarise

STRUCTURES = {"left": (1,), "right": (2,), "cyst": (3,), "both": (1, 2)}
TOLERANCES = dict.fromkeys(STRUCTURES, 1.0)
GRID = Grid((6, 4, 3), np.diag([-2.0, 1.0, 5.0, 1]))  # voxels of 10 mm3


def make_maps():
    """Two boxes of 8 and 4 voxels; the prediction is one voxel of the first axis further, and has no right box."""
    label, prediction = np.zeros((2, 6, 4, 3), np.uint8)
    label[0:2, 0:2, 0:2] = 1
    prediction[1:3, 0:2, 0:2] = 1
    label[4:6, 2:4, 2] = 2
    return label, prediction


def score(prediction, label, structures=STRUCTURES):
    table = score_structures(prediction, label, GRID, structures, TOLERANCES)
    return {name: dict(zip(METRICS, row, strict=True)) for name, row in zip(structures, table, strict=True)}


def test_scores_counted_by_hand():
    label, prediction = make_maps()
    left = score(prediction, label)["left"]
    assert (left["dice"], left["iou"], left["sensitivity"], left["precision"]) == (8 / 16, 4 / 12, 4 / 8, 4 / 8)
    assert (left["volume_ml"], left["label_volume_ml"]) == pytest.approx((0.08, 0.08))
    assert (left["volume_error_ml"], left["relative_volume_error"]) == (0, 0)
    assert left["hd95_mm"] == 2  # of two voxel layers, one is 2 mm from the nearest of the other mask

    prediction[1, 0, 0] = 0
    left = score(prediction, label)["left"]
    assert (left["dice"], left["iou"], left["sensitivity"], left["precision"]) == (6 / 15, 3 / 12, 3 / 8, 3 / 7)
    assert (left["volume_error_ml"], left["relative_volume_error"]) == pytest.approx((-0.01, -1 / 8))


def test_a_region_is_the_union_of_its_classes():
    label, prediction = make_maps()
    both = score(prediction, label)["both"]
    assert (both["dice"], both["sensitivity"], both["precision"]) == (8 / 20, 4 / 12, 4 / 8)
    assert both["hd95_mm"] > 2
    assert score(np.where(label == 1, 2, label).astype(np.uint8), label)["both"]["nsd"] == 1


def test_a_structure_absent_from_one_map_has_the_worst_scores():
    label, prediction = make_maps()
    shares = {"dice": 0, "iou": 0, "nsd": 0, "sensitivity": 0, "precision": 0}
    diagonal = math.hypot(5 * 2, 3 * 1, 2 * 5)
    missed = score(prediction, label)["right"]
    volumes = {"volume_ml": 0, "label_volume_ml": 0.04, "volume_error_ml": -0.04, "relative_volume_error": -1}
    assert missed == pytest.approx(shares | volumes | {"hd95_mm": diagonal})
    invented = score(label, prediction)["right"]
    volumes = {"volume_ml": 0.04, "label_volume_ml": 0, "volume_error_ml": 0.04, "relative_volume_error": math.nan}
    assert invented == pytest.approx(shares | volumes | {"hd95_mm": diagonal}, nan_ok=True)


def test_a_structure_absent_from_both_maps_has_no_score():
    label, prediction = make_maps()
    assert all(map(math.isnan, score(prediction, label)["cyst"].values()))
    empty = np.zeros_like(label)
    assert np.isnan(score_structures(empty, empty, GRID, STRUCTURES, TOLERANCES)).all()


def test_the_map_that_lacks_a_structure_is_named():
    label, prediction = make_maps()
    rows = score_structures(prediction, label, GRID, STRUCTURES, TOLERANCES)
    assert [absent_from(row) for row in rows] == ["", "prediction", "both", ""]
    rows = score_structures(label, prediction, GRID, STRUCTURES, TOLERANCES)
    assert [absent_from(row) for row in rows] == ["", "label", "both", ""]


def test_ignored_voxels_belong_to_neither_map():
    """What the prediction has there changes no score, and the ignored voxels alone are no structure."""
    label, prediction = make_maps()
    label[2:4] = IGNORED_INDEX
    maps = [np.where(label == IGNORED_INDEX, value, prediction).astype(np.uint8) for value in range(4)]
    expected, *others = (score_structures(predicted, label, GRID, STRUCTURES, TOLERANCES) for predicted in maps)
    for found in others:
        assert np.array_equal(found, expected, equal_nan=True)
    assert score(maps[0], label)["left"]["precision"] == 1
    assert math.isnan(score(maps[3], label)["cyst"]["dice"])


def test_the_dice_is_that_of_the_tables_of_predictions():
    generator = np.random.default_rng(0)
    label, prediction = generator.integers(0, 4, (2, 6, 4, 3)).astype(np.uint8)
    label[generator.random(label.shape) < 0.1] = IGNORED_INDEX
    found = score_structures(prediction, label, GRID, STRUCTURES, TOLERANCES)[:, 0]
    assert np.array_equal(found, dice_by_structure(prediction, label, list(STRUCTURES.values())))


def test_each_structure_has_its_own_tolerance():
    label, prediction = make_maps()
    structures = {"left": (1,), "same": (1,), "right": (2,), "cyst": (3,)}
    tolerances = {"left": 0.5, "same": 2.0, "right": 1.0, "cyst": 1.0}
    found = score_structures(prediction, label, GRID, structures, tolerances)[:, list(METRICS).index("nsd")]
    assert found[0] < 1 == found[1]


def test_the_grid_of_a_turned_file_changes_nothing():
    """The same volume with its axes in another order and direction."""
    label, prediction = make_maps()
    prediction[4, 3, 2] = 2
    expected = score_structures(prediction, label, GRID, STRUCTURES, TOLERANCES)
    turned = [np.ascontiguousarray(volume.transpose(2, 0, 1)[:, ::-1]) for volume in (prediction, label)]
    affine = GRID.affine[:, [2, 0, 1, 3]] * [1, -1, 1, 1]
    found = score_structures(*turned, Grid(turned[0].shape, affine), STRUCTURES, TOLERANCES)
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_large_volume_with_small_objects_takes_little_memory(monkeypatch):
    """Surfaces are compared in the box of both objects only."""
    sizes = []

    def measure(prediction, label, spacing, tolerance):
        sizes.append(prediction.size)
        return 0.0, 1.0

    monkeypatch.setattr("engine.evaluation.scores.compare_surfaces", measure)
    label, prediction = np.zeros((2, 300, 300, 200), np.uint8)
    label[10:14, 20:24, 30:34], prediction[12:16, 20:24, 30:34] = 1, 1
    label[290:295, 280:290, 150:160], prediction[290:295, 280:290, 150:160] = 2, 2
    structures = {"small": (1,), "other": (2,)}
    score_structures(prediction, label, Grid(label.shape, np.eye(4)), structures, dict.fromkeys(structures, 1.0))
    assert sizes == [6 * 4 * 4, 5 * 10 * 10]


def test_summaries_leave_out_what_has_no_score():
    nan = math.nan
    cases = [np.full((3, len(METRICS)), value) for value in (0.2, 0.4, 0.9)]
    cases[2][1] = nan  # the second class is in two cases
    cases[0][0, list(METRICS).index("relative_volume_error")] = nan
    found = summarise(cases, ["a", "b", "region"], classes=2)
    assert found["a"]["dice"] == pytest.approx((0.5, np.std([0.2, 0.4, 0.9], ddof=1), 3))
    assert found["b"]["dice"] == pytest.approx((0.3, np.std([0.2, 0.4], ddof=1), 2))
    assert found["a"]["relative_volume_error"].n == 2
    assert found["mean"]["dice"].mean == pytest.approx((0.5 + 0.3) / 2)  # of the class means, without the region
    assert found["mean"]["dice"][1:] == pytest.approx((np.std([0.2, 0.4, 0.9], ddof=1), 3))
    dice = [case[:2, 0] for case in cases]
    assert found["mean"]["dice"].mean == mean_over_classes(mean_over_cases(dice))


def test_a_summary_of_one_case_has_no_deviation():
    case = np.full((2, len(METRICS)), math.nan)
    case[0] = 0.5
    found = summarise([case], ["a", "b"], classes=2)
    assert found["a"]["dice"] == pytest.approx((0.5, math.nan, 1), nan_ok=True)
    assert found["b"]["dice"] == pytest.approx((math.nan, math.nan, 0), nan_ok=True)
    assert found["mean"]["dice"] == pytest.approx((0.5, math.nan, 1), nan_ok=True)

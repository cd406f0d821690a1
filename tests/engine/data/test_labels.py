"""File values become class indices and back, and every other value is named with its voxels."""

import numpy as np
import pytest

from engine.data.datasets import LabelValues
from engine.data.labels import IGNORED_INDEX, to_classes, to_file_values

THREE = LabelValues.consecutive(3)
ODD = LabelValues(((0,), (-2,), (205, 300), (70000,)), ignored=(7, 8))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("count", [3, 255])
def test_consecutive_values_are_the_indices(kind, count):
    voxels = np.arange(3).reshape(3, 1, 1).astype(kind)
    classes, problems = to_classes(voxels, LabelValues.consecutive(count))
    assert problems == []
    assert classes.dtype == np.uint8
    assert np.array_equal(classes, voxels)
    assert len(to_classes(voxels, LabelValues.consecutive(2))[1]) == 1


def test_any_values_may_stand_for_classes():
    voxels = np.array([[0, -2, 205], [300, 70000, 7], [8, 0, 205]])
    classes, problems = to_classes(voxels, ODD)
    assert problems == []
    assert classes.tolist() == [[0, 1, 2], [2, 3, IGNORED_INDEX], [IGNORED_INDEX, 0, 2]]


@pytest.mark.parametrize(
    ("values", "kind"),
    [((0, 255), np.uint8), ((0, 256), np.int16), ((0, -1), np.int16), ((0, 40000), np.uint16), ((-1, 40000), np.int32)],
)
def test_predictions_have_the_files_own_values_in_the_smallest_type(values, kind):
    written = to_file_values(np.array([[0, 1, 1]], np.uint8), LabelValues(tuple((value,) for value in values)))
    assert written.dtype == kind
    assert written.tolist() == [[values[0], values[1], values[1]]]


def test_a_merged_class_is_written_with_its_first_value():
    assert to_file_values(np.arange(4, dtype=np.uint8), ODD).tolist() == [0, -2, 205, 70000]


@pytest.mark.parametrize("offset", [1e-3 * 0.99, -1e-3 * 0.99, 0.0000153])
def test_values_near_a_whole_number_are_that_number(offset):
    classes, problems = to_classes(np.array([[1 + offset, 2, 0 - offset]], np.float32), THREE)
    assert problems == []
    assert classes.tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        *((256, np.int16, "256"), (257, np.int16, "257"), (-1, np.int8, "-1"), (-255, np.int16, "-255")),
        *((0.5, np.float32, "0.5"), (np.nan, np.float32, "nan"), (np.inf, np.float64, "inf"), (3, np.uint8, "3")),
        *((1.0011, np.float64, "1.0011"), (1.0011, np.float32, "1.0011"), (2**40, np.int64, "1099511627776")),
        *((1e300, np.float64, "1e+300"), (16777217, np.int32, "16777217")),
    ],
)
def test_unknown_values_are_named_with_the_digits_that_matter(value, kind, found):
    _, (problem,) = to_classes(np.array([[0, 1, 2], [1, value, value]], kind), THREE)
    assert problem == f"found label values {found} (2 voxels), expected whole numbers from 0 to 2"


def test_only_some_of_many_wrong_values_are_listed():
    _, (problem,) = to_classes(np.arange(12)[None], THREE)
    listed = ", ".join(f"{value} (1 voxel)" for value in range(3, 8))
    assert problem.startswith(f"found label values {listed} and 4 more, expected")


def test_expected_values_are_listed_if_they_have_gaps():
    _, (problem,) = to_classes(np.full((1, 1), 9), ODD)
    assert problem == "found label values 9 (1 voxel), expected -2, 0, 7, 8, 205, 300, 70000"

"""Rules of a plan: spacing, window and crop as functions of numbers."""

import numpy as np
import pytest

from engine.data.plan_rules import (
    SIDE,
    choose_crop,
    choose_spacing,
    choose_window,
    longest_sides,
    most_voxels,
    step_bytes,
)
from engine.runtime.errors import InputError
from networks import build_network

PAPER = 96**3


def test_the_spacing_is_the_median_along_each_axis():
    spacings = [(0.7, 0.8, 2.0), (0.9, 0.8, 2.5), (0.8125, 1.2, 1.0)]
    chosen, reason = choose_spacing([(400, 400, 100)] * 3, spacings)
    assert chosen == (0.812, 0.8, 2.0)
    assert reason == "median of 3 training cases, from 0.7 x 0.8 x 1 to 0.9 x 1.2 x 2.5"


def test_a_common_spacing_is_kept_but_for_the_noise_of_headers():
    spacings = [(0.79492199, 0.79492199, 1.0000001)] * 2
    assert choose_spacing([(9, 9, 9)] * 2, spacings) == ((0.795, 0.795, 1.0), "that of 2 training cases")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_get_the_tenth_percentile(axis):
    thick = [2.0, 2.5, 5.0, 5.0, 5.0, 5.0]
    spacings, shapes = np.full((6, 3), 0.8), np.full((6, 3), 256)
    spacings[:, axis], shapes[:, axis] = thick, 20
    chosen, reason = choose_spacing(shapes, spacings)
    expected = [0.8, 0.8, 0.8]
    expected[axis] = np.percentile(thick, 10)
    assert chosen == pytest.approx(expected)
    assert f"along {('R-L', 'A-P', 'I-S')[axis]}, where slices are thick, the 10th percentile" in reason


@pytest.mark.parametrize(
    ("spacing", "slices", "expected"),
    [(2.4, 20, 2.4), (5.0, 90, 5.0), (5.0, 85, 0.8)],
    ids=["three times as thick", "as many as a third", "both"],
)
def test_both_conditions_of_thick_slices_are_needed(spacing, slices, expected):
    spacings = [(0.8, 0.8, spacing)] * 5 + [(0.8, 0.8, 0.1)] * 4  # the tenth percentile is finer than the other axes
    chosen, _ = choose_spacing([(256, 256, slices)] * 9, spacings)
    assert chosen == (0.8, 0.8, expected)


def test_the_window_has_the_percentiles_of_all_voxels():
    rng = np.random.default_rng(0)
    parts = [rng.normal(100, 30, 5000), rng.normal(40, 10, 20000)]
    low, high = choose_window([part.astype(np.float32) for part in parts], [5000, 20000])
    assert (low, high) == pytest.approx(np.percentile(np.concatenate(parts), (0.5, 99.5)), abs=1.1)
    assert (low, high) == (round(low), round(high))


def test_a_case_counts_by_its_labelled_voxels_not_by_those_drawn():
    rng = np.random.default_rng(0)
    small, large = rng.normal(500, 10, 1000), rng.normal(0, 10, 100_000)
    drawn = rng.choice(large, 1000, replace=False)
    window = choose_window([small.astype(np.float32), drawn.astype(np.float32)], [1000, 100_000])
    assert window == pytest.approx(np.percentile(np.concatenate([small, large]), (0.5, 99.5)), abs=8)
    unweighted = np.percentile(np.concatenate([small, drawn]), (0.5, 99.5))
    assert window[1] < unweighted[1] - 10


def test_the_ends_of_a_small_range_have_three_digits():
    low, high = choose_window([np.linspace(0.1234, 0.8765, 10_001, dtype=np.float32)], [10_001])
    assert (low, high) == pytest.approx((0.127, 0.873), abs=1e-9)


def test_no_window_without_labelled_voxels_or_contrast():
    nothing, constant = np.empty(0, np.float32), np.full(1000, 7, np.float32)
    with pytest.raises(InputError, match="found no labelled voxel in any training case"):
        choose_window([nothing, nothing], [0, 0])
    with pytest.raises(InputError, match="found the intensity 7 in nearly all labelled voxels"):
        choose_window([constant, nothing], [1000, 0])


def test_the_default_memory_fits_the_crops_of_the_paper_and_no_larger_cube():
    assert choose_crop((400, 400, 400), (1, 1, 1), most_voxels(11.5, 16)) == (96, 96, 96)
    assert step_bytes(PAPER, 16) < 11.5e9 < step_bytes(112**3, 16)


def test_the_estimate_agrees_with_the_measured_step():
    measured = 6.47e9 - 0.5e9  # one crop of 96 x 96 x 96 with 16 classes (docs/networks.md) without the libraries
    weights = step_bytes(0, 16)
    assert weights + (step_bytes(PAPER, 16) - weights) / 2 == pytest.approx(measured, rel=0.02)
    assert weights == pytest.approx(16 * 65.98e6, rel=0.01)


@pytest.mark.parametrize(
    ("shape", "spacing", "crop"),
    [
        ((400, 400, 400), (2, 2, 2), (96, 96, 96)),
        ((36, 50, 37), (1, 1, 1), (32, 48, 32)),
        ((400, 400, 100), (0.8, 0.8, 5), (160, 192, 32)),
        ((400, 40, 400), (1, 1, 1), (160, 32, 192)),
        ((164, 166, 26), (0.795, 0.795, 5), (160, 160, 32)),
        ((24, 25, 40), (1, 1, 1), (16, 32, 32)),
        ((20, 23, 5), (1, 1, 1), (16, 32, 16)),
        ((3000, 3000, 3000), (0.001, 0.001, 0.001), (96, 96, 96)),
    ],
)
def test_the_crop_is_as_close_to_a_cube_as_volume_and_memory_allow(shape, spacing, crop):
    assert choose_crop(shape, spacing, most_voxels(11.5, 3)) == crop
    build_network("REP3D", 1, 3, crop, feat_size=(4, 4, 4, 4), kernel_size=3)  # accepts it


def test_no_other_crop_has_a_longer_shortest_side():
    shape, spacing, most = (130, 200, 70), (0.7, 0.9, 3.0), 200_000
    chosen = choose_crop(shape, spacing, most)
    sides = [range(SIDE, side + 1, SIDE) for side in longest_sides(shape)]
    fitting = [(a, b, c) for a in sides[0] for b in sides[1] for c in sides[2] if a * b * c <= most]
    assert chosen in fitting
    assert max(min(np.multiply(crop, spacing)) for crop in fitting) == min(np.multiply(chosen, spacing))


def test_the_smallest_crop_is_that_of_the_network():
    sizes = build_network("REP3D", 1, 2, feat_size=(4, 4, 4, 4), kernel_size=3).input_sizes
    assert sizes.divisors == (SIDE,) * 3
    assert np.prod(sizes.smallest) == 2 * SIDE**3
    least = step_bytes(2 * SIDE**3, 2) / 1e9
    assert choose_crop((99, 99, 99), (1, 1, 1), most_voxels(least * 1.0001, 2)) == (16, 16, 32)
    with pytest.raises(InputError, match=r"--memory: found 1 GB, expected at least 1\.1"):
        most_voxels(1, 2)

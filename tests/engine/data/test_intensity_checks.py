"""Checks of intensities: finite, or with NaN as background; contrast in the window."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import DESCRIPTION

from engine.data.datasets import DatasetDescription
from engine.data.intensity_checks import Extent, check_intensities, fill_nan, measure_channels

MRI = DatasetDescription.from_json(DESCRIPTION, "test")
CT = DatasetDescription.from_json(DESCRIPTION | {"intensity": {"window": [-125, 275]}}, "test")


def test_values_beyond_float32_count_as_infinite():
    assert check_intensities([np.array([1e38, -1e38])]) == []
    assert len(check_intensities([np.array([1e39, 0.0])])) == 1


def test_nan_may_stand_for_the_minimum_but_infinity_not():
    voxels = np.array([np.nan, 3, np.nan, -2], np.float32)
    (line,) = check_intensities([voxels])
    assert line.startswith('found 2 NaN voxels, expected finite intensities, or "nan": "minimum"')
    assert check_intensities([voxels], nan_is_minimum=True) == []
    assert fill_nan(voxels) == 2
    assert voxels.tolist() == [-2, 3, -2, -2]
    infinite = [np.array([np.nan, np.inf, 1])]
    assert check_intensities(infinite, True) == ["found 1 infinite voxel, expected finite intensities (in float32)"]
    assert [line.split(",")[0] for line in check_intensities(infinite)] == [
        "found 1 NaN voxel",
        "found 1 infinite voxel",
    ]


def test_a_channel_of_nan_alone_has_no_minimum():
    channels = [np.ones(3), np.full(3, np.nan)]
    expected = ["found a channel of nothing but NaN, expected intensities"]
    assert check_intensities(channels, nan_is_minimum=True) == expected


@pytest.mark.parametrize(("classes", "warned"), [(2, True), (20, True), (21, False)])
def test_a_label_map_in_place_of_an_image_is_warned_of(classes, warned):
    labels = np.zeros((70, 40, 40))
    labels[1 - classes :, 0, 0] = np.arange(1, classes)  # so few that a sample of the voxels misses them
    found = measure_channels([labels], MRI).warnings
    assert found == ({"few values": [f"found only {classes} different values, as in a label map"]} if warned else {})


def test_a_ct_without_its_offset_is_warned_of_once():
    """All of it is above the window, which says enough; that nothing is below 0 has the same cause."""
    ct = np.random.default_rng(0).normal(50, 80, (8, 8, 8)) + 1024
    assert list(measure_channels([ct], CT).warnings) == ["saturated"]


def test_the_channel_is_named_where_there_are_several():
    description = replace(CT, channels=("CT", "PET"), windows=(CT.windows[0], None))
    noise = np.random.default_rng(0).normal(50, 80, (8, 8, 8))
    warnings = measure_channels([(noise - noise.min()) / 2, noise], description).warnings
    assert warnings["scale"][0].startswith("channel CT: found no intensity below 0, expected negative ones")


@pytest.mark.parametrize(("scale", "warned"), [(1, False), (1 / 400, True)])
def test_a_ct_that_is_not_in_hounsfield_units_is_warned_of(scale, warned):
    ct = np.random.default_rng(0).normal(50, 80, (8, 8, 8)) * scale
    warnings = measure_channels([ct], CT).warnings
    assert list(warnings) == (["contrast"] if warned else [])
    if warned:
        assert warnings["contrast"][0].endswith("hardly any contrast in the window from -125 to 275")


def test_windows_of_single_channels_are_measured_in_these_channels():
    rules = {"T1": {"zscore": True}, "CT": {"window": [0, 10]}}
    two = DatasetDescription.from_json(DESCRIPTION | {"channels": ["T1", "CT"], "intensity": rules}, "test")
    low, high = np.zeros((4, 4, 4)), np.full((4, 4, 4), 20.0)
    high[:2] = 5
    low[1:3] = 100  # with the bright half of the other channel: a box of three of the four planes
    measures = measure_channels([low, high], two)
    assert (measures.share_low, measures.share_high) == (0, pytest.approx(2 / 3))


@pytest.mark.parametrize("windows", [(None, None), ((0.5, 2), None), ((0.9, 2), (0.95, 1)), ((7, 8), (7, 8))])
def test_the_extent_gives_the_box_of_the_foreground_for_any_windows(windows):
    rng = np.random.default_rng(0)
    channels = [rng.random((6, 7, 8)) * np.array([0, 0, 1, 1, 1, 0])[:, None, None] for _ in range(2)]
    lows = [channel.min() if window is None else window[0] for channel, window in zip(channels, windows, strict=True)]
    foreground = np.any([channel > low for channel, low in zip(channels, lows, strict=True)], axis=0)
    places = np.nonzero(foreground) if foreground.any() else np.nonzero(np.ones_like(foreground))
    assert Extent.of(channels).box(windows) == tuple(slice(found.min(), found.max() + 1) for found in places)

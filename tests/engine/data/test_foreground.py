"""Labelled voxels of a case, as a plan needs them."""

import numpy as np

from engine.data.foreground import SAMPLED_VOXELS, sample_foreground
from engine.data.intensity_checks import Extent
from engine.data.labels import IGNORED_INDEX


def make_case(shape, labelled, seed=0):
    rng = np.random.default_rng(seed)
    channels = [rng.normal(0, 1, shape).astype(np.float32), rng.integers(0, 99, shape).astype(np.int16)]
    classes = np.zeros(shape, np.uint8)
    classes.reshape(-1)[:labelled] = 2
    return channels, classes


def test_few_labelled_voxels_are_all_kept_channels_together_and_ignored_ones_left_out():
    channels, classes = make_case((10, 11, 12), 700)
    classes[0, 0, :5] = IGNORED_INDEX
    found = sample_foreground(channels, classes, Extent.of(channels))
    mask = classes == 2
    assert found.labelled == mask.sum() == 695
    assert np.array_equal(found.intensities, [channel[mask] for channel in channels])
    assert found.intensities.dtype == np.float32


def test_of_many_labelled_voxels_the_same_different_ones_are_drawn_each_time():
    shape, labelled = (50, 50, 50), 100_000
    classes = np.zeros(shape, np.uint8)
    classes.reshape(-1)[-labelled:] = 1
    channel = np.arange(classes.size, dtype=np.int32).reshape(shape)
    first, second = (sample_foreground([channel], classes, Extent.of([channel])) for _ in range(2))
    assert first.labelled == labelled
    assert np.array_equal(first.intensities, second.intensities)
    drawn = np.unique(first.intensities)
    assert len(drawn) == SAMPLED_VOXELS
    assert drawn.min() >= classes.size - labelled
    assert abs(drawn.mean() - (classes.size - labelled / 2)) < 500


def test_a_case_without_label_has_no_labelled_voxel():
    channels, _ = make_case((4, 5, 6), 0)
    found = sample_foreground(channels, None, Extent.of(channels))
    assert (found.labelled, found.intensities.shape) == (0, (2, 0))

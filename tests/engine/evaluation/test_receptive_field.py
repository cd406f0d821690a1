"""Effective receptive field: contribution maps of networks whose field is known, and boxes found by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from engine.evaluation.receptive_field import (
    contribution_map,
    measure_field,
    observed_position,
    smallest_box,
)


def ones_conv(side, **options):
    """Build a convolution of one channel whose weights are all 1."""
    conv = nn.Conv3d(1, 1, side, bias=False, **options)
    nn.init.ones_(conv.weight)
    return conv


@pytest.mark.parametrize("side", [1, 3, 5])
def test_the_field_of_a_convolution_is_its_kernel(side):
    size = (11, 9, 7)
    field = measure_field(ones_conv(side, padding=side // 2), [torch.ones(1, 1, *size)], (1, 1, 1))
    near = [np.abs(np.arange(length) - length // 2) <= side // 2 for length in size]
    assert np.array_equal(field.contributions, np.einsum("i,j,k->ijk", *near))
    assert smallest_box(field.contributions, field.centre, 0.99) == (side, side**3 / (11 * 9 * 7))


def test_no_contribution_comes_from_outside_the_reach():
    network = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.GELU(), nn.Conv3d(4, 3, 5, padding=2))
    contributions = contribution_map(network, torch.randn(3, 2, 15, 15, 15))
    inside = contributions[4:11, 4:11, 4:11].copy()  # 3 + 5 - 1 = 7 voxels
    assert inside.any()
    contributions[4:11, 4:11, 4:11] = 0
    assert not contributions.any()


def test_both_relus_and_the_mean_over_the_images():
    network = nn.Conv3d(2, 3, 1, bias=False)
    network.weight.data = torch.tensor([[1.0, -2], [3, 4], [-5, -6]])[..., None, None, None]
    # Of 1, 1 the features are -1, 7, -11, and the gradient is 3, 4; of -1, -1 they are 1, -7, 11: 1 - 5, -2 - 6.
    images = torch.ones(2, 2, 3, 3, 3) * torch.tensor([1.0, -1])[:, None, None, None, None]
    assert contribution_map(network, images[:1])[1, 1, 1] == 7
    assert contribution_map(network, images[1:])[1, 1, 1] == 0
    assert contribution_map(network, images)[1, 1, 1] == 3.5
    field = measure_field(network, images.split(1), (1, 1, 1))
    assert (field.contributions.sum(), field.centre, field.images) == (3.5, (1, 1, 1), 2)


@pytest.mark.parametrize(
    "layers", [[(3, 3, 0)], [(7, 2, 3), (2, 2, 0), (2, 2, 0), (2, 2, 0)]], ids=["patches", "rep3d"]
)
def test_the_observed_position_is_the_middle_of_the_field(layers):
    network = nn.Sequential(*(ones_conv(side, stride=stride, padding=padding) for side, stride, padding in layers))
    stride = int(np.prod([layer[1] for layer in layers]))
    size = (4 * stride, 6 * stride, 3 * stride)
    field = measure_field(network, [torch.ones(1, 1, *size)], (stride,) * 3)
    for found, middle in zip(field.contributions.nonzero(), field.centre, strict=True):
        assert found.min() + found.max() == 2 * middle


def test_of_two_middle_voxels_the_lower_one_is_the_position():
    assert observed_position((32, 48, 16), (16, 16, 16)) == (16 + 7, 16 + 7, 7)
    assert observed_position((96, 9, 8), (1, 1, 1)) == (48, 4, 4)


@pytest.mark.parametrize(("share", "side"), [(0.2, 1), (0.4, 1), (0.5, 3), (0.7, 3), (0.99, 5), (1.0, 5)])
def test_boxes_of_a_map_with_three_points(share, side):
    contributions = np.zeros((5, 5, 7))
    contributions[2, 2, 3], contributions[1, 3, 3], contributions[2, 0, 3] = 4, 3, 3
    assert smallest_box(contributions, (2, 2, 3), share) == (side, side**3 / (5 * 5 * 7))


def test_boxes_are_cut_off_at_the_border():
    contributions = np.zeros((5, 4, 2))
    contributions[0, 0, 0], contributions[3, 0, 0] = 1, 1
    assert smallest_box(contributions, (0, 0, 0), 0.5) == (1, 1 / 40)
    assert smallest_box(contributions, (0, 0, 0), 0.6) == (7, 4 * 4 * 2 / 40)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_map_without_mass(value):
    with pytest.raises(ValueError, match="contributions: found a sum of"):
        smallest_box(np.full((3, 3, 3), value), (1, 1, 1), 0.5)

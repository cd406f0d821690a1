"""Numbers that describe masks."""

import numpy as np
import pytest
import torch
from torch import nn

from engine.evaluation.masks import compute_masks, mask_scalars, radial_profile
from networks import build_network

TINY = {"feat_size": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "kernel_size": 5}


def test_masks_by_block():
    masks = compute_masks(build_network("REP3D", 1, 2, **TINY))
    assert list(masks) == [f"rep3d.stages.{stage}.0" for stage in range(4)]
    assert {mask.shape for mask in masks.values()} == {(1, 1, 5, 5, 5)}
    assert compute_masks(build_network("REP3D_NONE", 1, 2, **TINY)) == {}


def test_scalars_of_a_free_mask():
    network = build_network("REP3D", 1, 2, **TINY, correction="free")
    lrbm = network.encoder.stages[2][0].lrbm
    with torch.no_grad():
        lrbm.free.copy_(0.5 * lrbm.prior)
        lrbm.free[0, 0, 0, 0] = -1
    scalars = mask_scalars(network)
    assert len(scalars) == 8
    corner = lrbm.prior[0, 0, 0].item()
    assert scalars["rep3d.stages.2.0/correction"] == pytest.approx((0.5 * 124 + 1 / corner) / 125)
    assert scalars["rep3d.stages.2.0/smallest"] == pytest.approx(corner - 1)
    assert scalars["rep3d.stages.0.0/correction"] == 0


def test_masks_without_parameters_have_no_scalars():
    assert mask_scalars(build_network("REP3D_FIXED", 1, 2, **TINY)) == {}
    learned_beta = build_network("REP3D_FIXED", 1, 2, **TINY, learn_beta=True)
    nn.init.constant_(learned_beta.encoder.stages[0][0].lrbm.log_beta, 1)
    assert mask_scalars(learned_beta)["rep3d.stages.0.0/correction"] > 0.1


def test_radial_profile_of_a_cube():
    """Of 27 taps, the centre, 6 + 12 at distances 1 and 1.41, and 8 at 1.73, which is rounded to 2."""
    values = np.zeros((3, 3, 3))
    values[1, 1, 1] = 5
    values[0, 1, 1] = 18
    values[::2, ::2, ::2] = 3
    assert radial_profile(values).tolist() == [5, 1, 3]


def test_radial_profile_of_some_taps():
    values, where = np.full((3, 3, 3), np.inf), np.zeros((3, 3, 3), bool)
    values[1, 1], where[1, 1, :2] = 4, True
    values[1, 1, 1] = 6
    assert radial_profile(values, where)[:2].tolist() == [6, 4]
    assert np.isnan(radial_profile(values, where)[2])

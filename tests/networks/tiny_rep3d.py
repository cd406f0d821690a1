"""Small Rep3D networks with each mask and random parameters, and the comparison of their outputs."""

import pytest
from torch import nn

from networks.Rep3D import LRBM, REP3D

MASKS = {
    "shared": {"mask": "learned"},
    "per_channel": {"mask": "learned", "per_channel": True},
    "additive": {"mask": "learned", "correction": "additive"},
    "free": {"mask": "learned", "correction": "free", "learn_beta": True},
    "replicate": {"mask": "learned", "generator_padding": "replicate", "mask_floor": 0.01},
    "fixed": {"mask": "fixed"},
    "none": {"mask": "none"},
}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def tiny_rep3d(**options):
    return REP3D(**{"out_chans": 3, "depths": (1, 1, 1, 1), "feat_size": (4, 8, 12, 16), "ks": 5, **options})


def randomise(module):
    """Randomise statistics and affine parameters of BatchNorm, and the whole generator."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm3d):
            nn.init.normal_(child.running_mean, std=0.3)
            nn.init.uniform_(child.running_var, 0.5, 2)
            nn.init.uniform_(child.weight, 0.5, 2)
            nn.init.normal_(child.bias, std=0.3)
        elif isinstance(child, LRBM):
            for parameter in child.parameters():
                nn.init.normal_(parameter, std=0.3)
    return module


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()

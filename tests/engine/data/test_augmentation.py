"""The fast rotation and scaling match MONAI's RandAffined: same random draws, geometry and padding."""

import math

import pytest
import torch
from monai.transforms import RandAffined

from engine.data.augmentation import RandIsotropicAffineGrid, RandRotateScaled

KEYS = ["image", "label"]
RECIPE = {"angle": math.pi / 30, "scale": 0.1}
WIDE = {"angle": math.pi, "scale": 0.9}  # reaches several volumes away, where the reflection repeats


def monai_affine(angle, scale):
    affine = RandAffined(KEYS, prob=1.0, mode=("bilinear", "nearest"))
    affine.rand_affine.rand_affine_grid = RandIsotropicAffineGrid(
        rotate_range=(0.0, 0.0, angle), scale_range=(scale, scale, scale)
    )
    return affine


def make_case(shape, channels=1):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((channels, *shape), generator=generator)
    return {"id": "case", "image": image, "label": torch.randint(0, 256, (1, *shape), generator=generator).byte()}


@pytest.mark.parametrize("ranges", [RECIPE, WIDE], ids=["recipe", "wide"])
@pytest.mark.parametrize("shape", [(32, 32, 32), (17, 40, 9), (8, 6, 25), (2, 3, 2), (1, 5, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_to_monai_up_to_rounding(ranges, shape, channels):
    case = make_case(shape, channels)
    ours, theirs = RandRotateScaled(KEYS, **ranges), monai_affine(**ranges)
    for transform in (ours, theirs):
        transform.set_random_state(5)
    for _ in range(4):  # the random state advances from crop to crop
        found, expected = ours(dict(case)), theirs(dict(case))
        assert found.keys() == expected.keys()
        assert torch.allclose(found["image"], expected["image"].as_tensor(), rtol=0, atol=1e-4)
        assert (found["label"] != expected["label"].as_tensor()).float().mean() < 2e-3
        assert found["label"].dtype == torch.uint8


def test_zero_ranges_are_the_identity():
    case = make_case((6, 7, 8), 2)
    found = RandRotateScaled(KEYS, angle=0.0, scale=0.0)(dict(case))
    assert torch.equal(found["image"], case["image"])
    assert torch.equal(found["label"], case["label"])


def test_the_input_is_not_modified():
    case = make_case((6, 7, 8))
    before = {key: case[key].clone() for key in KEYS}
    RandRotateScaled(KEYS, **RECIPE)(case)
    assert all(torch.equal(case[key], before[key]) for key in KEYS)

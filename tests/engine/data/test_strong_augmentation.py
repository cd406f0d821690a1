"""The strong augmentation: its geometry, its intensities, and that nothing but the seed decides it."""

import math

import numpy as np
import pytest
import torch
from monai.transforms import AffineGrid, RandGaussianNoise, RandShiftIntensity, Resample

from engine.data.strong_augmentation import (
    RandChannelsd,
    RandRotateScaleDeformd,
    RandSmooth,
    strong_augmentation,
)

KEYS, SHAPE = ["image", "label"], (20, 28, 24)
NUMBER = len(strong_augmentation(KEYS))


def make_case(scale="window", channels=2, shape=SHAPE):
    """Draw an image in [0, 1] or with mean 0 and deviation 1, and a label with ignored voxels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((channels, *shape), generator=generator)
    image = image if scale == "window" else (image - image.mean()) / image.std()
    label = torch.randint(0, 3, (1, *shape), generator=generator).byte()
    label[..., 0] = 255
    return {"id": "case", "image": image, "label": label}


def move(**ranges):
    """Build the spatial transform with probability 1, and only the movements given."""
    given = {"angle": 0.0, "scale": (1.0, 1.0), "sigma": (9.0, 13.0), "displacement": 0.0} | ranges
    return RandRotateScaleDeformd(KEYS, 1.0, **given)


def certain(number):
    """Return one transform of the list, always applied."""
    transform = strong_augmentation(KEYS)[number]
    transform.prob = 1.0
    if isinstance(transform, RandChannelsd):
        transform.transform.prob = 1.0
    return transform


@pytest.mark.parametrize("scale", ["window", "zscore"])
@pytest.mark.parametrize("number", range(NUMBER))
def test_every_transform_changes_every_channel_and_nothing_in_place(number, scale):
    case, before = make_case(scale), make_case(scale)
    transform = certain(number)
    transform.set_random_state(3)
    found = transform(dict(case))
    assert found["id"] == "case"
    assert all(torch.equal(case[key], before[key]) for key in KEYS)
    assert (found["image"].shape, found["image"].dtype) == (case["image"].shape, torch.float32)
    assert (found["label"].shape, found["label"].dtype) == (case["label"].shape, torch.uint8)
    assert found["image"].isfinite().all()
    for channel, plain in zip(found["image"], case["image"], strict=True):
        assert not torch.allclose(channel, plain, atol=1e-3)
    assert torch.equal(found["label"], case["label"]) == (number > 0)
    assert set(found["label"].unique().tolist()) <= {0, 1, 2, 255}


@pytest.mark.parametrize("number", range(NUMBER))
def test_flat_crops_and_single_slices_stay_finite(number):
    flat = {"image": torch.zeros(1, *SHAPE), "label": torch.zeros(1, *SHAPE, dtype=torch.uint8)}
    for case in (flat, make_case(shape=(1, 5, 3))):
        assert certain(number)(dict(case))["image"].isfinite().all()


@pytest.mark.parametrize("number", range(NUMBER))
def test_the_seed_decides_every_draw(number):
    first, again, other = (certain(number) for _ in range(3))
    for transform, seed in ((first, 1), (again, 1), (other, 2)):
        transform.set_random_state(seed)
    first.set_random_state(1)
    crops = [[transform(make_case())["image"] for _ in range(2)] for transform in (first, again, other)]
    assert all(map(torch.equal, crops[0], crops[1]))
    assert not torch.equal(crops[0][0], crops[0][1])
    assert not torch.equal(crops[0][0], crops[2][0])


def test_rotation_and_scale_are_those_of_monai_with_reflection():
    transform, case = move(angle=math.pi / 6, scale=(0.7, 1.4)), make_case()
    for seed in range(3):
        transform.set_random_state(seed)
        found = transform(dict(case))
        assert transform.factor is not None
        grid, _ = AffineGrid(rotate_params=transform.angles, scale_params=[transform.factor] * 3)(SHAPE)
        for key, mode in (("image", "bilinear"), ("label", "nearest")):
            expected = Resample(padding_mode="reflection")(case[key], grid, mode=mode)
            differs = (found[key].float() - expected.as_tensor()).abs() > 1e-3
            assert differs.float().mean() < 2e-3  # rounding decides which of two voxels is nearer


def test_image_and_label_move_together():
    middle = [torch.arange(side) - (side - 1) / 2 for side in SHAPE]
    distance = torch.stack(torch.meshgrid(*middle, indexing="ij")).norm(dim=0)
    inside = (distance < 7)[None]
    transform = move(angle=math.pi / 6, scale=(0.7, 1.4), displacement=0.5)
    for seed in range(3):
        transform.set_random_state(seed)
        found = transform({"image": inside.float(), "label": inside.byte()})
        assert ((found["image"] > 0.5) == (found["label"] == 1)).float().mean() > 0.98


def test_a_larger_factor_makes_structures_smaller():
    case = {key: torch.zeros(1, *SHAPE) for key in KEYS}
    case["image"][:, 6:14, 8:20, 8:16] = 1
    small, large = (move(scale=(factor, factor))(dict(case))["image"].sum() for factor in (1.4, 0.7))
    assert small < case["image"].sum() / 2 < 2 * case["image"].sum() < large


def test_deformations_do_not_fold():
    transform = move(displacement=0.5)
    for seed in range(4):
        transform.set_random_state(seed)
        transform.randomize((40, 48, 40))
        field = transform.displacements
        assert 0 < field.abs().max() <= 0.5 * 13
        gradients = torch.stack([torch.stack(torch.gradient(along)) for along in field])  # (3, 3, D, H, W)
        assert torch.linalg.det(gradients.permute(2, 3, 4, 0, 1) + torch.eye(3)).min() > 0.2


def test_each_movement_has_the_probability_of_its_own():
    transform = RandRotateScaleDeformd(KEYS, 0.2, 0.5, (0.7, 1.4), (9.0, 13.0), 0.5)
    transform.set_random_state(0)
    drawn, case = [], make_case(shape=(4, 4, 4))
    for _ in range(200):
        made = transform(case)
        drawn.append([part is not None for part in (transform.angles, transform.factor, transform.displacements)])
        assert (made is case) == (not any(drawn[-1]))
    assert np.allclose(np.mean(drawn, axis=0), 0.2, atol=0.08)
    assert np.mean(np.all(drawn, axis=1)) < 0.04  # independent of each other


def test_channels_draw_for_themselves():
    noise = RandChannelsd(RandGaussianNoise(1.0, std=0.1), prob=1.0)
    shift = RandChannelsd(RandShiftIntensity(0.1, prob=1.0), prob=1.0)
    zeros = {"image": torch.zeros(2, *SHAPE)}
    for transform in (noise, shift):
        transform.set_random_state(0)
        one, other = transform(zeros)["image"]
        assert not torch.equal(one, other)
    assert shift(zeros)["image"].flatten(1).std(dim=1).max() < 1e-6


def test_probabilities_of_image_and_channel_multiply():
    transform = RandChannelsd(RandShiftIntensity(0.1, prob=0.5), prob=0.4)
    transform.set_random_state(0)
    zeros = {"image": torch.zeros(1, 1, 1, 1)}
    changed = np.mean([bool(transform(zeros)["image"].any()) for _ in range(500)])
    assert changed == pytest.approx(0.2, abs=0.05)


def test_smoothing_does_not_darken_the_faces():
    smooth = RandSmooth(*3 * ((0.5, 1.0),), prob=1.0)
    assert torch.allclose(smooth(torch.ones(1, *SHAPE)).as_tensor(), torch.ones(1, *SHAPE), atol=1e-3)
    noise = torch.rand(1, *SHAPE)
    assert smooth(noise).std() < 0.9 * noise.std()

"""Labels on the native grid, computed block by block, equal those of MONAI's inverse pipeline for any affine."""

import itertools
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DESCRIPTION, write_nifti
from monai.data import MetaTensor

from engine.data.datasets import DatasetDescription
from engine.prediction.inversion import compare_classes, interpolate_blocks, shared_axes, to_native_labels
from load_datasets_transforms import test_pipeline as prediction_pipeline

CLASSES = 5
NEAR_TIE = 1e-4  # of probabilities; MONAI's float32 coordinates have errors of this size in the largest volumes
DIFFERING = 2e-4  # maximum share of differing voxels


def make_case(folder, shape, affine, spacing, channels=1):
    """Create a preprocessed image and its pipeline; the foreground keeps away from all faces if there is room."""
    rng = np.random.default_rng(1)
    voxels = np.zeros((*shape, channels), np.float32)
    inner = tuple(slice(side // 6, side - side // 5) for side in shape)
    voxels[inner] = rng.random(voxels[inner].shape) + 1
    write_nifti(folder / "image.nii.gz", voxels if channels > 1 else voxels[..., 0], affine)
    description = DatasetDescription.from_json(
        DESCRIPTION | {"spacing": list(spacing), "channels": [f"channel {n}" for n in range(channels)]}, "test"
    )
    transforms = prediction_pipeline(description)
    image = transforms({"id": "case", "image": str(folder / "image.nii.gz")})["image"]
    assert image.shape[0] == channels
    return image, transforms


def make_logits(image, classes=CLASSES, sharpness=4.0):
    """Draw smooth random logits on the image's grid."""
    coarse = torch.randn(1, classes, 6, 5, 4, generator=torch.Generator().manual_seed(2)) * sharpness
    return F.interpolate(coarse, size=image.shape[1:], mode="trilinear")[0]


def invert_whole(logits, image, transforms):
    """Invert all probabilities with MONAI, as the published code does; returns (classes, X, Y, Z)."""
    operations = deepcopy(image.applied_operations)
    placed = MetaTensor(logits.softmax(0), meta=image.meta, applied_operations=operations)
    return transforms.inverse({"image": placed})["image"].as_subclass(torch.Tensor)


def assert_same_labels(labels, probabilities):
    """Assert that labels equal the argmax, except for few voxels, in which the probability is nearly the largest.

    Exactly on the edge of the crop all probabilities are 0, or some millionths with float32 coordinates; there every
    class counts as nearly the largest.
    """
    largest, expected = probabilities.max(dim=0)
    assert labels.shape == expected.shape
    assert labels.dtype == torch.uint8
    assert ((labels != expected) & (largest > NEAR_TIE)).float().mean() <= DIFFERING
    chosen = probabilities.gather(0, labels.long()[None])[0]
    assert (largest - chosen).max() <= NEAR_TIE


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation(tmp_path, order, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.diag((1.1, 0.9, 2.3))[:, order] * signs
    affine[:3, 3] = (-20, 35, 7)
    shape = tuple((26, 31, 17)[axis] for axis in order)
    image, transforms = make_case(tmp_path, shape, affine, (1.0, 1.2, 1.5))
    assert shared_axes(image) is not None
    logits = make_logits(image)
    labels = to_native_labels(logits, image, transforms)
    assert_same_labels(labels, invert_whole(logits, image, transforms))
    assert len(labels.unique()) == CLASSES


def rotation(*angles):
    """Compute the matrix of rotations about x, then y, then z."""
    turns = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        turns = turn @ turns
    return turns


def with_steps(steps):
    """Build the affine of a 3 x 3 matrix in the precision of a NIfTI file."""
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = (12.5, -7.25, 100)
    return affine.astype(np.float32).astype(float)


GEOMETRIES = {  # shape, affine, spacing, channels
    "oblique": ((40, 33, 21), with_steps(rotation(0.2, -0.3, 0.4) * (0.9, 1.1, 2.5)), (1.0, 1.0, 2.0), 1),
    "thick slices": ((60, 70, 9), with_steps(np.diag([-0.5, -0.5, 10])), (1.5, 1.5, 2.0), 1),
    "one slice": ((40, 30, 1), with_steps(np.diag([1, -1, 5])), (1.5, 0.7, 2.0), 1),
    "finer grid": ((20, 21, 22), with_steps(np.diag([3, 3.3, 4])), (1.0, 1.0, 1.0), 1),
    "coarser grid": ((100, 61, 62), with_steps(np.diag([0.4, 0.4, 0.3])), (1.0, 1.3, 1.0), 1),
    "whole steps": ((40, 36, 30), with_steps(np.diag([0.5, 0.5, 0.5])), (1.0, 1.0, 1.0), 1),
    "right spacing": ((30, 31, 19), with_steps(np.diag([-1, 1, 1])), (1.0, 1.0, 1.0), 1),
    "nearly right spacing": ((30, 31, 19), with_steps(np.diag([-1, 1, 1.0004])), (1.0, 1.0, 1.0), 1),
    "three channels": ((30, 31, 19), with_steps(np.diag([-1.2, 1, 1.7])), (1.0, 1.0, 1.0), 3),
    "sheared": ((30, 31, 19), with_steps([[1.2, 0, 0], [0, 1.1, 0.8], [0, 0, 2]]), (1.0, 1.0, 1.0), 1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(tmp_path, name):
    image, transforms = make_case(tmp_path, *GEOMETRIES[name])
    assert (shared_axes(image) is None) == (name == "sheared")
    logits = make_logits(image)
    expected = invert_whole(logits, image, transforms)
    labels = to_native_labels(logits, image, transforms)
    assert_same_labels(labels, expected)
    assert len(labels.unique()) > 2
    assert_same_labels(compare_classes(logits, image, transforms), expected)


def test_voxels_outside_the_crop_are_background(tmp_path):
    """Even if the network predicts no background anywhere."""
    image, transforms = make_case(tmp_path, *GEOMETRIES["coarser grid"])
    logits = torch.zeros(CLASSES, *image.shape[1:])
    logits[3] = 50
    labels = to_native_labels(logits, image, transforms)
    inside = invert_whole(logits, image, transforms)[3]
    assert torch.equal(labels == 3, inside > NEAR_TIE)
    assert set(labels.unique().tolist()) == {0, 3}


def test_a_crop_between_two_slices_labels_none(tmp_path):
    image, transforms = make_case(tmp_path, (12, 12, 8), with_steps(np.diag([1, 1, 10])), (1.0, 1.0, 1.0))
    thin = transforms.transforms[-2]  # CropForegroundd
    thin.cropper.select_fn = lambda volume: torch.zeros_like(volume).index_fill_(3, torch.tensor([34, 35]), 1)
    image = transforms({"id": "case", "image": str(tmp_path / "image.nii.gz")})["image"]
    assert image.shape[-1] == 2
    logits = make_logits(image)
    assert not to_native_labels(logits, image, transforms).any()
    assert not invert_whole(logits, image, transforms).any()


def test_flat_probabilities_are_compared_in_every_class(tmp_path):
    """No class can be skipped in any block, because all have similar probabilities."""
    image, transforms = make_case(tmp_path, *GEOMETRIES["finer grid"])
    logits = make_logits(image, classes=16, sharpness=0.05)
    labels = to_native_labels(logits, image, transforms)
    assert_same_labels(labels, invert_whole(logits, image, transforms))
    assert len(labels.unique()) > 12


def test_equal_probabilities_are_background(tmp_path):
    image, transforms = make_case(tmp_path, *GEOMETRIES["right spacing"])
    assert not to_native_labels(torch.zeros(CLASSES, *image.shape[1:]), image, transforms).any()


@pytest.mark.parametrize("name", ["oblique", "sheared"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(tmp_path, name, value):
    image, transforms = make_case(tmp_path, *GEOMETRIES[name])
    logits = make_logits(image)
    logits[2, 4, 5, 6] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        to_native_labels(logits, image, transforms)


@pytest.mark.parametrize(("shear", "shared"), [(1e-5, True), (1e-2, False)])
def test_shear_is_judged_by_its_effect_over_the_volume(tmp_path, shear, shared):
    steps = np.eye(3)
    steps[0, 1] = shear
    image, _ = make_case(tmp_path, (30, 31, 19), with_steps(steps), (1.0, 1.0, 1.0))
    assert (shared_axes(image) is not None) == shared


def test_other_pipelines_use_the_general_path(tmp_path):
    image, _ = make_case(tmp_path, *GEOMETRIES["oblique"])
    image.applied_operations.pop()
    assert shared_axes(image) is None


def test_blocks_do_not_modify_the_logits(tmp_path):
    image, _ = make_case(tmp_path, *GEOMETRIES["oblique"])
    logits = make_logits(image)
    before = logits.clone()
    interpolate_blocks(logits, shared_axes(image), GEOMETRIES["oblique"][0])
    assert torch.equal(logits, before)

"""Predicted labels are inverted to the image's own grid and written; logits that are not finite are refused."""

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DESCRIPTION, write_nifti

from engine.data.cases import make_case
from engine.data.datasets import DatasetDescription
from engine.evaluation.metrics import dice_by_structure
from engine.runtime.errors import InputError
from load_datasets_transforms import infer_post_transforms
from load_datasets_transforms import test_pipeline as prediction_pipeline


def rotated(angle, spacing, origin=(-20.0, 35.0, 7.0)):
    """Build an affine in mm with a rotation about the z axis."""
    cos, sin = np.cos(angle), np.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "1 mm": np.eye(4),
    "anisotropic": np.diag([0.8, 0.8, 5.0, 1.0]),
    "LPS": np.diag([-1.5, -1.5, 2.0, 1.0]),
    "permuted": np.array([[0, 0, 2.0, 5], [-1.2, 0, 0, 9], [0, 1.1, 0, -3], [0, 0, 0, 1]]),
    "rotated": rotated(0.3, (1.0, 1.0, 3.0)),
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_labels_return_to_their_place(tmp_path, affine):
    """Labels used as intensities, transformed and inverted, are the same except for voxels at edges."""
    labels = np.zeros((24, 30, 16), np.uint8)
    labels[2:10, 6:24, 1:8] = 1
    labels[14:20, 3:14, 2:9] = 2
    write_nifti(tmp_path / "image.nii.gz", labels.astype(np.int16), affine)
    description = DatasetDescription.from_json(DESCRIPTION | {"intensity": {"window": [0, 2]}}, "test")
    transforms = prediction_pipeline(description)
    source = str(tmp_path / "image.nii.gz")
    case = transforms(make_case("case", source))
    assert case["image"].shape[1:] != labels.shape  # resampled or cropped
    distance = (case["image"] - torch.tensor([0, 0.5, 1])[:, None, None, None]).abs()
    case["pred"] = -10 * distance
    invert, save = infer_post_transforms(tmp_path, transforms)
    out = save(invert(case))["pred"]
    assert out.shape == labels.shape
    assert dice_by_structure(out, labels, [[1], [2]]).min() > 0.85  # a flip, or a shift by a voxel or two, gives less
    written = nib.load(tmp_path / "case_seg.nii.gz")
    assert np.array_equal(written.affine, nib.load(source).affine)
    assert np.array_equal(np.asarray(written.dataobj), out)


def test_logits_that_are_not_finite_name_the_case(tmp_path):
    write_nifti(tmp_path / "image.nii.gz", np.random.default_rng(0).random((9, 9, 9)))
    description = DatasetDescription.from_json(DESCRIPTION, "test")
    transforms = prediction_pipeline(description)
    case = transforms(make_case("liver_7", str(tmp_path / "image.nii.gz")))
    for options in ({}, {"save_probabilities": "native"}, {"save_probabilities": "network"}):
        logits = torch.full((3, *case["image"].shape[1:]), torch.nan)
        invert, _ = infer_post_transforms(tmp_path, transforms, **options)
        with pytest.raises(InputError, match="liver_7: found logits that are not finite"):
            invert({**case, "pred": logits})
    assert [path.name for path in tmp_path.iterdir()] == ["image.nii.gz"]

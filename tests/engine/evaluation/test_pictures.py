"""Pictures of volume, label and prediction in anatomical orientation, and of a network's masks."""

import nibabel as nib
import numpy as np
import pytest
from conftest import DESCRIPTION, write_nifti

from engine.data.datasets import DatasetDescription
from engine.evaluation.pictures import encode_png, mask_slices, preview, save_png, three_planes


def test_pictures_of_full_empty_and_flat_volumes(tmp_path):
    labels = np.zeros((12, 10, 6), np.uint8)
    image = np.random.default_rng(0).random(labels.shape)
    classes = ("background", "left", "right")
    assert len(three_planes(image, labels, None, classes, (1, 1, 3), "empty").axes) == 3
    labels[3:8, 2:6, 2:4] = 2
    figure = three_planes(image, labels, labels, classes, (1, 1, 3), "case")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["right", "prediction", "label"]
    assert "voxel" in figure.axes[0].get_title()
    save_png(figure, tmp_path / "case.png")
    assert (tmp_path / "case.png").stat().st_size > 10_000
    write_nifti(tmp_path / "flat.nii.gz", np.zeros((9, 8, 1), np.int16))
    description = DatasetDescription.from_json(DESCRIPTION, "test")
    assert preview(str(tmp_path / "flat.nii.gz"), np.ones((9, 8, 1), np.uint8), None, description, "flat").axes


def test_dollar_signs_in_names_are_no_formulas():
    labels = np.ones((4, 4, 4), np.uint8)
    figure = three_planes(labels.astype(float), labels, None, ("background", "$\\frac$"), (1, 1, 1), "$\\frac$")
    assert encode_png(figure).startswith(b"\x89PNG")


def test_a_picture_does_not_depend_on_the_axis_order_of_the_file(tmp_path):
    voxels = np.zeros((6, 8, 10), np.int16)
    voxels[1, 2, 3] = 100
    image = nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
    nib.save(image, tmp_path / "ras.nii")
    orientation = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("SLP")
    )
    turned = image.as_reoriented(orientation)
    nib.save(turned, tmp_path / "slp.nii")
    description = DatasetDescription.from_json(DESCRIPTION | {"intensity": {"window": [0, 100]}}, "test")
    views = []
    for name, array in (("ras.nii", voxels), ("slp.nii", np.asarray(turned.dataobj))):
        figure = preview(str(tmp_path / name), (array > 0).astype(np.uint8), None, description, "case")
        views.append([(axes.images[0].get_array(), axes.get_aspect()) for axes in figure.axes])
    for (one, aspect), (other, other_aspect) in zip(*views, strict=True):
        assert np.array_equal(one, other)
        assert aspect == pytest.approx(other_aspect)


def test_the_picture_of_masks_has_one_slice_per_block():
    figure = mask_slices({name: np.random.default_rng(0).random((1, 1, 5, 5, 5)) for name in "abcde"})
    assert sum(bool(axes.images) and axes.get_title() != "" for axes in figure.axes) == 5

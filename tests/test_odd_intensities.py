"""Intensities that are not those of the description: NaN, other units, rules by channel."""

import shutil

import numpy as np
import pytest
import torch
from conftest import DESCRIPTION, prediction_arguments, train_arguments, write_nifti
from odd_data import ITERATIONS, check, describe, nothing, read_weights, rewrite, warnings_in
from prediction_folders import NAMES

from engine.data.datasets import DatasetDescription
from load_datasets_transforms import test_pipeline as prediction_pipeline


def blank(voxels, affine):
    """Put NaN into 1512 voxels."""
    voxels = voxels.copy()
    voxels[:3] = np.nan
    return voxels, affine, nothing


def fill(voxels, affine):
    return np.nan_to_num(voxels, nan=np.nanmin(voxels)), affine, nothing


def test_nan_is_the_background_if_the_description_says_so(boxes, capsys, train, tmp_path):
    rewrite(boxes, "images*/*", blank)
    assert "found 1512 NaN voxels, expected" in train(*train_arguments(boxes, tmp_path / "no", *ITERATIONS))[2]
    describe(boxes, nan="minimum")
    assert check(boxes) == 0
    out = capsys.readouterr().out
    assert "images: NaN stands for the minimum of its channel, as the description says" in out
    assert warnings_in(out) == [
        "training case box_0: found 1512 NaN voxels, taken for the minimum (and 4 more of this kind)"
    ]
    status, out, _ = train(*train_arguments(boxes, tmp_path / "odd", *ITERATIONS))
    assert status == 0
    assert "NaN stands for the minimum" in out

    rewrite(boxes, "images*/*", fill)
    describe(boxes)
    assert train(*train_arguments(boxes, tmp_path / "plain", *ITERATIONS))[0] == 0
    for name, weight in read_weights(tmp_path / "plain").items():
        assert torch.equal(weight, read_weights(tmp_path / "odd")[name]), name


def test_channels_are_scaled_by_their_own_rules(tmp_path):
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{name}.nii.gz") for name in ("a_ct", "a_pet")]
    volumes = [rng.normal(100, 50, (6, 5, 4)).astype(np.float32) for _ in paths]
    for path, volume in zip(paths, volumes, strict=True):
        write_nifti(tmp_path / path, volume)
    rules = {"CT": {"window": [50, 150]}, "PET": {"zscore": True}}
    channels = {"CT": "_ct", "PET": "_pet"}
    description = DatasetDescription.from_json(DESCRIPTION | {"channels": channels, "intensity": rules}, "test")
    image = prediction_pipeline(description)({"id": "a", "image": paths, "source": paths})["image"].numpy()
    np.testing.assert_allclose(image[0], (volumes[0].clip(50, 150) - 50) / 100, atol=1e-6)
    np.testing.assert_allclose(image[1], (volumes[1] - volumes[1].mean()) / volumes[1].std(), atol=1e-5)


def to_unit_range(voxels):
    return (voxels - voxels.min()) / np.ptp(voxels)


WRONG_UNITS = {
    "0 to 1": (to_unit_range, ("found intensities from 0", "hardly any contrast in the window from -125 to 275")),
    "0 to 255": (
        lambda voxels: 255 * to_unit_range(voxels),
        ("found no intensity below 0, expected negative ones, as in the window from -125 to 275",),
    ),
    "without the offset of HU": (lambda voxels: voxels + 1024, ("100% at or above it (-125 to 275)",)),
}


@pytest.mark.parametrize(("convert", "parts"), WRONG_UNITS.values(), ids=WRONG_UNITS)
def test_a_ct_that_is_not_in_hounsfield_units_is_warned_of(boxes, capsys, train, predict, tmp_path, convert, parts):
    """By the check, by training, which reads two cases of each split, and by prediction."""
    describe(boxes, intensity={"window": [-125, 275]})
    rewrite(boxes, "images*/*", lambda voxels, affine: (voxels - 100, affine, nothing))
    check(boxes)
    assert warnings_in(capsys.readouterr().out) == []

    rewrite(boxes, "images*/*", lambda voxels, affine: (convert(voxels).astype(np.float32), affine, nothing))
    check(boxes)
    outputs = [capsys.readouterr().out]
    run_folder = tmp_path / "run"
    for result in (
        train(*train_arguments(boxes, run_folder, "--max_iter", "2", "--eval_step", "2")),
        predict(*prediction_arguments(boxes, tmp_path / "out", run_folder)),
    ):
        assert result[0] == 0, result
        outputs.append(result[1])
    for out, others in zip(outputs, (4, 3, 2), strict=True):
        line = next(line for line in warnings_in(out) if parts[0] in line)
        assert all(part in line for part in (*parts, "box_0"))
        assert line.endswith(f"(and {others} more of this kind)")


def test_nan_is_drawn_as_the_minimum(boxes, train, predict, tmp_path):
    """The picture of an image with NaN is that of the image with its minimum in their place."""
    rewrite(boxes, "images*/*", blank)
    describe(boxes, nan="minimum")
    assert train(*train_arguments(boxes, tmp_path / "run", *ITERATIONS))[0] == 0
    pictures = []
    for folder in (tmp_path / "nan", tmp_path / "plain"):
        assert predict(*prediction_arguments(boxes, folder, tmp_path / "run", "--preview"))[0] == 0
        pictures.append([(folder / f"{name}.png").read_bytes() for name in NAMES])
        rewrite(boxes, "images*/*", fill)
    assert pictures[0] == pictures[1]


def test_a_channel_of_nan_is_refused(boxes, train, predict, trained, capsys, tmp_path):
    rewrite(boxes, "imagesTr/box_0*", lambda voxels, affine: (np.full_like(voxels, np.nan), affine, nothing))
    describe(boxes, nan="minimum")
    line = f"{boxes}/imagesTr/box_0.nii.gz: found a channel of nothing but NaN, expected intensities"
    check(boxes)
    assert line in capsys.readouterr().err
    assert line in train(*train_arguments(boxes, tmp_path / "run"))[2]
    described = ("--dataset", boxes / "boxes.json")
    assert line in predict(*prediction_arguments(boxes, tmp_path / "out", trained, *described))[2]


def test_masks_among_the_images_are_warned_of(boxes, predict, trained, tmp_path):
    """A hand-drawn mask beside the image, as in the folders of KiTS: it is predicted, which is said."""
    shutil.copy(boxes / "labelsTr" / "box_1.nii.gz", boxes / "imagesTr" / "box_1_mask.nii.gz")
    status, out, _ = predict(*prediction_arguments(boxes, tmp_path / "out", trained))
    assert status == 0
    assert "case box_1_mask: found only 3 different values, as in a label map" in warnings_in(out)

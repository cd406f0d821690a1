"""Sliding window, the way back to the native grid, and the file that is written."""

import threading
import time
import weakref
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DESCRIPTION, write_nifti
from torch import nn

from engine.data.cases import make_case
from engine.data.datasets import DatasetDescription
from engine.data.nifti import read_labels, save_labels
from engine.evaluation.metrics import dice_by_class
from engine.evaluation.pictures import mask_slices, preview, save_png, three_planes
from engine.prediction.predict_cases import overlap_steps
from engine.prediction.sliding_window import Window, choose_accumulator, predict_logits
from engine.runtime.errors import InputError
from load_datasets_transforms import infer_post_transforms
from load_datasets_transforms import test_pipeline as prediction_pipeline

NO_AUTOCAST = partial(torch.autocast, "cpu", enabled=False)


def rotated(angle, spacing, origin=(-20.0, 35.0, 7.0)):
    """An affine in mm that turns about the z axis."""
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
def test_labels_come_back_to_where_they_were(tmp_path, affine):
    """Labels shown as intensities, sent through the pipeline and back, are the same but for the edges' voxels."""
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
    invert, save = infer_post_transforms(transforms, tmp_path)
    out = save(invert(case))["pred"]
    assert out.shape == labels.shape
    assert dice_by_class(out, labels, 3).min() > 0.85  # any flip or shift by a voxel or two falls below
    written = nib.load(tmp_path / "case_seg.nii.gz")
    assert np.array_equal(written.affine, nib.load(source).affine)
    assert np.array_equal(np.asarray(written.dataobj), out)


class BrightIsForeground(nn.Module):
    """Logits from the voxel alone, whatever the window."""

    out_chans = 2

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x], dim=1)


@pytest.mark.parametrize("shape", [(20, 40, 33), (5, 6, 7), (16, 16, 16)])
def test_sliding_window_covers_every_voxel_of_any_volume(shape):
    image = torch.randn(1, *shape)
    logits = predict_logits(BrightIsForeground(), image, Window((16, 16, 16), 3, 0.5, torch.device("cpu"), NO_AUTOCAST))
    assert logits.shape == (2, *shape)
    assert torch.allclose(logits[1], image[0], atol=1e-6)
    assert not logits[0].any()


def test_logits_are_added_up_where_there_is_room():
    gpu, needed = torch.device("cuda", 1), 4 * 17 * 300 * 200 * 100
    assert choose_accumulator(16, (300, 200, 100), gpu, 2 * needed) == gpu
    assert choose_accumulator(16, (300, 200, 100), gpu, 2 * needed - 1) == torch.device("cpu")
    assert choose_accumulator(16, (300, 200, 100), torch.device("cpu"), float("inf")) == torch.device("cpu")


def test_logits_that_are_not_finite_name_the_case(tmp_path):
    write_nifti(tmp_path / "image.nii.gz", np.random.default_rng(0).random((9, 9, 9)))
    transforms = prediction_pipeline(DatasetDescription.from_json(DESCRIPTION, "test"))
    case = transforms(make_case("liver_7", str(tmp_path / "image.nii.gz")))
    case["pred"] = torch.full((3, *case["image"].shape[1:]), torch.nan)
    invert, _ = infer_post_transforms(transforms, tmp_path)
    with pytest.raises(InputError, match="liver_7: found logits that are not finite"):
        invert(case)


def test_work_goes_on_while_the_item_before_is_finished():
    started, order = threading.Event(), []

    def work(item):
        order.append(f"work {item}")
        if item == 1:
            started.set()
        return item

    def finish(item):
        assert item or started.wait(10)  # the second item's work begins before the first one's finish is over
        order.append(f"finish {item}")

    overlap_steps(range(3), work, finish)
    assert order.index("work 1") < order.index("finish 0")
    assert [step for step in order if step.startswith("finish")] == ["finish 0", "finish 1", "finish 2"]


@pytest.mark.parametrize("slow", [True, False])
def test_items_live_no_longer_than_their_finish(slow):
    """Of what was made, two at most are alive however slow the finish, and one once the one before is finished."""

    class Volume:
        pass

    alive: list[weakref.ref] = []
    counts = []

    def work(_):
        volume = Volume()
        alive.append(weakref.ref(volume))
        deadline = time.monotonic() + (0 if slow else 5)
        while (count := sum(reference() is not None for reference in alive)) > 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        counts.append(count)
        return volume

    overlap_steps(range(5), work, lambda volume: time.sleep(0.05 if slow else 0))
    assert max(counts) <= (3 if slow else 1)  # three in the moment between the end of a finish and its return


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_in_the_thread_surfaces(bad):
    done = []

    def finish(item):
        if item == bad:
            raise OSError(28, "No space left on device")
        done.append(item)

    with pytest.raises(OSError, match="No space left"):
        overlap_steps(range(3), lambda item: item, finish)
    assert done == list(range(bad))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_written_labels_keep_the_header_and_drop_the_scaling(tmp_path, kind):
    image = kind(np.zeros((3, 4, 5), np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(2.5, 10)
    image.header["cal_max"] = 400
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="mni")
    nib.save(image, tmp_path / "image.nii")
    labels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    save_labels(labels, str(tmp_path / "image.nii"), tmp_path / "labels.nii.gz")
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(read_labels(str(tmp_path / "labels.nii.gz")), labels)
    assert (written.get_data_dtype(), float(written.header["cal_max"])) == (np.uint8, 0)
    assert (int(written.header["sform_code"]), written.header.get_xyzt_units()[0]) == (4, "mm")
    assert isinstance(written, kind)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["image.nii", "labels.nii.gz"]


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


def test_picture_shows_the_patient_the_same_way_in_any_axis_order(tmp_path):
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


def test_mask_picture_has_a_slice_a_block():
    figure = mask_slices({name: np.random.default_rng(0).random((1, 1, 5, 5, 5)) for name in "abcde"})
    assert sum(bool(axes.images) and axes.get_title() != "" for axes in figure.axes) == 5

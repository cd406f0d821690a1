"""Datasets as users bring them: what means the same gives the same weights and predictions, and anything else is said.

The kinds were reported for this and similar software, from files of other tools to labels without a valid position.
"""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import (
    DESCRIPTION,
    prediction_arguments,
    train_arguments,
)
from odd_data import ITERATIONS, add_axes, check, describe, nothing, read_weights, rewrite, warnings_in
from prediction_folders import NAMES, path_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_train
import test_seg as predict_script
from engine.data.nifti import read_voxels
from engine.runtime.errors import run


def use_capitals(root):
    for path in root.glob("*/box_[18].nii.gz"):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))


def scale_labels(root):
    for path in root.glob("labels*/*"):
        image = nib.load(path)
        scaled = nib.Nifti1Image(np.asanyarray(image.dataobj).astype(np.float64), image.affine)
        scaled.header.set_data_dtype(np.int16)  # with a slope chosen by nibabel
        nib.save(scaled, path)
    assert set(np.unique(nib.load(path).get_fdata())) != {0, 1, 2}


def mark_byte_order(root):
    path = root / "boxes.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def name_as_amos(root):
    for kind in ("images", "labels"):
        (root / f"{kind}Val").rename(root / f"{kind}Va")


def use_other_values(root):
    """Labels 0, 205 and 420, of which the second has two values."""
    values = np.array([0, 205, 420], np.int16)

    def change(voxels, affine):
        labels = values[voxels]
        labels[:20][labels[:20] == 205] = 206
        return labels, affine, nothing

    rewrite(root, "labels*/*", change)
    describe(root, labels={"background": 0, "right": 420, "left": [205, 206]})


def name_channels(root):
    for path in root.glob("images*/*"):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_t1.nii.gz")))
    describe(root, channels={"T1": "_t1"})


SAME = {
    "axes of length 1": add_axes,
    "endings in capitals": use_capitals,
    "labels with a scale factor": scale_labels,
    "a byte-order mark": mark_byte_order,
    "folders named as in AMOS": name_as_amos,
    "labels of any value": use_other_values,
    "channels by their endings": name_channels,
}


@pytest.fixture(scope="module")
def plain(box_template, tmp_path_factory):
    """Output folder of a training on the boxes as they are, with its predictions in "out"."""
    folder = tmp_path_factory.mktemp("plain")
    training = [str(word) for word in train_arguments(box_template, folder, *ITERATIONS)]
    assert run(main_train.main, main_train.parse_args(training)) == 0
    prediction = prediction_arguments(box_template, folder / "out", folder)
    assert run(predict_script.main, predict_script.parse_args(prediction)) == 0
    return folder


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_means_the_same_gives_the_same_weights_and_predictions(boxes, plain, tmp_path, train, predict, change):
    odd = tmp_path / "odd"
    change(boxes)
    status, out, err = train(*train_arguments(boxes, odd, *ITERATIONS))
    assert status == 0, err
    assert warnings_in(out) == []
    for name, weight in read_weights(plain).items():
        assert torch.equal(weight, read_weights(odd)[name]), name

    status, out, err = predict(*prediction_arguments(boxes, odd / "out", odd))
    assert status == 0, err
    assert warnings_in(out) == []
    assert (plain / "out" / "dice.csv").read_text() == (odd / "out" / "dice.csv").read_text()
    values = np.array([0, 205, 420] if change is use_other_values else [0, 1, 2])
    for name in NAMES:
        expected = values[read_voxels(str(path_of(plain / "out", name)))]
        assert np.array_equal(read_voxels(str(path_of(odd / "out", name))), expected)


def test_a_clean_dataset_prints_no_warning(boxes, capsys, train, predict, trained, tmp_path):
    assert check(boxes) == 0
    assert warnings_in(capsys.readouterr().out) == []
    assert warnings_in(train(*train_arguments(boxes, tmp_path / "run", *ITERATIONS))[1]) == []
    assert warnings_in(predict(*prediction_arguments(boxes, tmp_path / "out", trained))[1]) == []


def test_files_of_other_formats_are_said_to_be_left_out(boxes, capsys, train, predict, trained, tmp_path):
    for name in ("scan.nrrd", "scan.mha"):
        (boxes / "imagesTr" / name).write_bytes(b"NRRD0004\n")
    line = f"{boxes}/imagesTr: left out scan.mha, scan.nrrd, expected .nii.gz or .nii files"
    check(boxes)
    assert warnings_in(capsys.readouterr().out) == [line]
    assert warnings_in(train(*train_arguments(boxes, tmp_path / "run", *ITERATIONS))[1]) == [line]
    assert warnings_in(predict(*prediction_arguments(boxes, tmp_path / "out", trained))[1]) == [line]


def test_all_images_are_predicted_and_those_with_a_label_scored(boxes, predict, trained, predicted, tmp_path):
    for name in ("box_1", "box_2"):
        (boxes / "labelsTr" / f"{name}.nii.gz").unlink()
    status, out, _ = predict(*prediction_arguments(boxes, tmp_path / "out", trained))
    assert status == 0
    assert "3 predictions in" in out
    (line,) = warnings_in(out)
    assert "found 2 of 3 images without a label" in line
    assert (tmp_path / "out" / "dice.csv").read_text().splitlines()[1].startswith("box_0,")
    assert len((tmp_path / "out" / "dice.csv").read_text().splitlines()) == 3
    for name in NAMES:
        assert path_of(tmp_path / "out", name).read_bytes() == path_of(predicted, name).read_bytes()


def test_a_class_that_resampling_removes_is_warned_of(boxes, capsys):
    def shrink(voxels, affine):
        voxels = voxels.copy()
        voxels[voxels == 2] = 0
        voxels[5, 6, 7] = 2
        return voxels, np.diag([0.25, 0.25, 0.25, 1]), nothing

    rewrite(boxes, "labelsTr/box_[01]*", shrink)
    rewrite(boxes, "imagesTr/box_[01]*", lambda voxels, _: (voxels, np.diag([0.25, 0.25, 0.25, 1]), nothing))
    check(boxes)
    (line,) = warnings_in(capsys.readouterr().out)
    assert line == (
        "training case box_0: found right (1 voxel), of which resampling leaves nothing (and 1 more of this kind)"
    )


def ignore_the_first_planes(image_value):
    """Label 12 planes 9; the image has ``image_value`` in them, which its minimum and maximum enclose."""

    def label(voxels, affine):
        labels = voxels.copy()
        labels[:12] = 9
        return labels, affine, nothing

    def image(voxels, affine):
        changed = voxels.copy()
        changed[:12] = image_value
        return changed, affine, nothing

    def change(root):
        rewrite(root, "labels*/*", label)
        rewrite(root, "images*/*", image)
        window = {"window": [0, 200]}
        describe(root, labels={**DESCRIPTION["labels"], "ignore": 9}, intensity=window)

    return change


def test_ignored_voxels_are_neither_learned_nor_scored(boxes, train, predict, tmp_path):
    """Whatever the label of these voxels would have been: other labels there, but marked, give the same weights."""
    ignore_the_first_planes(100)(boxes)
    assert train(*train_arguments(boxes, tmp_path / "run", "--max_iter", "4", "--full_check"))[0] == 0
    other = Path(shutil.copytree(boxes, tmp_path / "other"))
    describe(other, labels={**DESCRIPTION["labels"], "ignore": [7, 9]}, intensity={"window": [0, 200]})
    rewrite(other, "labels*/*", lambda voxels, affine: (np.where(voxels == 9, 7, voxels), affine, nothing))
    assert train(*train_arguments(other, tmp_path / "same", "--max_iter", "4", "--full_check"))[0] == 0
    for name, weight in read_weights(tmp_path / "run").items():
        assert torch.equal(weight, read_weights(tmp_path / "same")[name]), name
    describe(other, labels=DESCRIPTION["labels"], intensity={"window": [0, 200]})
    rewrite(other, "labels*/*", lambda voxels, affine: (np.where(voxels == 7, 0, voxels), affine, nothing))
    assert train(*train_arguments(other, tmp_path / "learned", "--max_iter", "4"))[0] == 0
    learned = read_weights(tmp_path / "learned")
    assert not all(torch.equal(weight, learned[name]) for name, weight in read_weights(tmp_path / "run").items())

    assert predict(*prediction_arguments(boxes, tmp_path / "out", tmp_path / "run"))[0] == 0
    table = (tmp_path / "out" / "dice.csv").read_text().splitlines()
    assert table[0] == "case,left,right,mean"
    for number, name in enumerate(NAMES):
        label = read_voxels(str(boxes / "labelsTr" / f"{name}.nii.gz"))
        found, true = read_voxels(str(path_of(tmp_path / "out", name)))[label != 9], label[label != 9]
        for value, cell in zip((1, 2), table[1 + number].split(",")[1:3], strict=True):
            shared, sizes = np.sum((found == value) & (true == value)), np.sum(found == value) + np.sum(true == value)
            assert float(cell) == pytest.approx(2 * shared / sizes, abs=1e-6)


def test_regions_and_ignored_voxels_in_the_scores_of_validation_and_prediction(boxes, train, predict, tmp_path):
    ignore_the_first_planes(100)(boxes)
    values = json.loads((boxes / "boxes.json").read_text())
    describe(boxes, **{**values, "regions": {"both": ["left", "right"]}})
    status, _, err = train(*train_arguments(boxes, tmp_path / "run", *ITERATIONS))
    assert status == 0, err
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"dice/left", "dice/right", "dice/both", "dice/mean"} <= set(log.Tags()["scalars"])
    weights = ("--trained_weights", tmp_path / "run" / "best_metric_model.pth", "--gpu", "cpu", "--amp", "off")
    assert predict("--images", boxes / "imagesVal", "--output", tmp_path / "out", *weights)[0] == 0
    found, validated = ((tmp_path / folder / "dice.csv").read_text() for folder in ("out", "run"))
    assert found == validated
    header, *rows = (line.split(",") for line in found.splitlines())
    assert header == ["case", "left", "right", "both", "mean"]
    for name, *cells in rows[:2]:
        label = read_voxels(str(boxes / "labelsVal" / f"{name}.nii.gz"))
        known = label != 9
        one, other = read_voxels(str(path_of(tmp_path / "out", name)))[known] > 0, label[known] > 0
        assert float(cells[2]) == pytest.approx(2 * np.sum(one & other) / (one.sum() + other.sum()), abs=1e-6)
        assert float(cells[3]) == pytest.approx((float(cells[0]) + float(cells[1])) / 2, abs=1e-6)

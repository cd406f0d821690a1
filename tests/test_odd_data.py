"""Datasets as users bring them: what means the same gives the same weights and predictions, and anything else is said.

The kinds were reported for this and similar software, from files of other tools to labels without a valid position.
"""

import json
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from conftest import (
    DESCRIPTION,
    REAL_DATA,
    assert_one_line,
    prediction_arguments,
    real_data,
    train_arguments,
    write_nifti,
)
from prediction_folders import NAMES, path_of

from engine.data.datasets import DatasetDescription
from engine.data.nifti import encode_labels, open_volume, read_voxels
from engine.runtime.errors import run
from load_datasets_transforms import test_pipeline as prediction_pipeline
from tools import check_data

ITERATIONS = ("--max_iter", "2", "--eval_step", "2", "--full_check")


def rewrite(root, pattern, change):
    """Rewrite the files that match ``pattern`` with ``change(voxels, affine) -> (voxels, affine, edit of header)``."""
    for path in root.glob(pattern):
        image = nib.load(path)
        voxels, affine, edit = change(np.asanyarray(image.dataobj), image.affine.copy())
        changed = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
        edit(changed.header)
        nib.save(changed, path)


def nothing(header):
    pass


def describe(root, **changes):
    (root / "boxes.json").write_text(json.dumps(DESCRIPTION | changes))


def add_axes(root):
    rewrite(root, "imagesTr/*", lambda voxels, affine: (voxels[..., None], affine, nothing))
    rewrite(root, "labels*/*", lambda voxels, affine: (voxels[..., None, None], affine, nothing))


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


def read_weights(folder):
    return torch.load(folder / "last_checkpoint.pth", weights_only=True)["model"]


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_means_the_same_gives_the_same_weights_and_predictions(
    boxes, box_template, tmp_path, train, predict, change
):
    plain, odd = tmp_path / "plain", tmp_path / "odd"
    assert train(*train_arguments(box_template, plain, *ITERATIONS))[0] == 0
    change(boxes)
    status, out, err = train(*train_arguments(boxes, odd, *ITERATIONS))
    assert status == 0, err
    assert "warning" not in out
    for name, weight in read_weights(plain).items():
        assert torch.equal(weight, read_weights(odd)[name]), name

    for run_folder, root in ((plain, box_template), (odd, boxes)):
        status, out, err = predict(*prediction_arguments(root, run_folder / "out", run_folder))
        assert status == 0, err
        assert "warning" not in out
    assert (plain / "out" / "dice.csv").read_text() == (odd / "out" / "dice.csv").read_text()
    values = np.array([0, 205, 420] if change is use_other_values else [0, 1, 2])
    for name in NAMES:
        expected = values[read_voxels(str(path_of(plain / "out", name)))]
        assert np.array_equal(read_voxels(str(path_of(odd / "out", name))), expected)


def shape_of_itk(path):
    image = SimpleITK.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def to_metres(root):
    def change(voxels, affine):
        affine[:3] /= 1000
        return voxels, affine, lambda header: header.set_xyzt_units("meter", "sec")

    rewrite(root, "*/*.nii.gz", change)


def to_microns(root):
    def change(voxels, affine):
        affine[:3] *= 1000
        return voxels, affine, lambda header: header.set_xyzt_units("micron")

    rewrite(root, "*/*.nii.gz", change)


def lengthen_quaternions(root):
    """Quaternions a little longer than 1, with no sform: ITK reads them, nibabel does not."""
    for path in root.glob("*/*.nii.gz"):
        image = nib.load(path)
        plain = path.with_suffix("")
        image.header["qform_code"], image.header["sform_code"] = 1, 0
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), plain)
        content = bytearray(plain.read_bytes())
        struct.pack_into("<2h3f", content, 252, 1, 0, 0.7072, 0.7072, 0.01)
        plain.write_bytes(content)
        path.unlink()


def drop_codes(root):
    rewrite(root, "*/*.nii.gz", lambda voxels, affine: (voxels, affine, clear_codes))


def clear_codes(header):
    header["qform_code"] = header["sform_code"] = 0


PLACED = {
    "metres": (to_metres, "found the unit metres, converted to voxels of 1 x 1 x 1 mm"),
    "microns": (to_microns, "found the unit microns, converted to voxels of 1 x 1 x 1 mm"),
    "long quaternions": (lengthen_quaternions, ""),
    "no position": (drop_codes, ""),
    "an axis of length 1": (add_axes, ""),
}


@pytest.mark.parametrize(("change", "warning"), PLACED.values(), ids=PLACED)
def test_itk_places_a_prediction_where_it_places_the_image(boxes, trained, tmp_path, predict, change, warning):
    change(boxes)
    status, out, err = predict(*prediction_arguments(boxes, tmp_path / "out", trained))
    assert status == 0, err
    warned = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert len(warned) == (warning != "")
    assert all(warning in line and line.endswith("(and 5 more of this kind)") for line in warned)
    for image in (boxes / "imagesTr").iterdir():
        prediction = path_of(tmp_path / "out", image.name.split(".")[0])
        assert shape_of_itk(prediction) == shape_of_itk(image)
        assert (
            nib.load(prediction).shape == nib.Nifti1Header.from_fileobj(nib.openers.ImageOpener(image)).get_data_shape()
        )


def affine_of_itk(path):
    """Return the affine to RAS, mm, that ITK reads; of four axes the first three."""
    image = SimpleITK.ReadImage(str(path))
    axes = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (axes, axes))[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("change", [to_metres, to_microns, lengthen_quaternions, add_axes])
def test_positions_are_those_of_itk(boxes, change):
    change(boxes)
    path = next((boxes / "imagesTr").iterdir())
    np.testing.assert_allclose(open_volume(str(path)).affine, affine_of_itk(path), atol=1e-6)


def test_oblique_files_of_itk_are_read_where_itk_places_them(tmp_path):
    """Written by SimpleITK, and a prediction for them read by it again."""
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32))
    turn = SimpleITK.VersorTransform((0.3, -0.5, 0.2), 0.7).GetMatrix()
    image.SetSpacing((0.7, 1.3, 2.9))
    image.SetOrigin((-31.25, 12.5, 100.75))
    image.SetDirection(turn)
    SimpleITK.WriteImage(image, str(tmp_path / "image.nii.gz"))
    read = open_volume(str(tmp_path / "image.nii.gz"))
    np.testing.assert_allclose(read.affine, affine_of_itk(tmp_path / "image.nii.gz"), atol=1e-4)
    labels = np.ones(read.shape, np.uint8)
    (tmp_path / "labels.nii.gz").write_bytes(encode_labels(labels, str(tmp_path / "image.nii.gz")))
    assert shape_of_itk(tmp_path / "labels.nii.gz") == shape_of_itk(tmp_path / "image.nii.gz")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=real_data(name)) for name in ("msd_hippocampus", "ct_spleen")]
)
def test_real_files_are_read_where_itk_places_them(name):
    for path in sorted((REAL_DATA / name).glob("*/*.nii.gz"))[::20]:
        np.testing.assert_allclose(open_volume(str(path)).affine, affine_of_itk(path), atol=1e-4)


def check(root, *flags):
    return run(
        check_data.main, check_data.parse_args(["--root", str(root), "--dataset", str(root / "boxes.json"), *flags])
    )


def warnings_in(out):
    return [line.removeprefix("warning: ") for line in out.splitlines() if line.startswith("warning: ")]


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


def test_labels_are_placed_on_their_images_only_on_request(
    boxes, box_template, capsys, train, predict, trained, tmp_path
):
    """Labels at the origin, as ITK's tools draw them on images without a position."""
    rewrite(boxes, "images*/*", lambda voxels, affine: (voxels, affine, clear_codes))
    rewrite(boxes, "labels*/*", lambda voxels, affine: (voxels, np.diag([-1.0, -1.0, 1.0, 1.0]), nothing))
    assert check(boxes) == 2
    captured = capsys.readouterr()
    assert captured.err.count("expected the same affine; if the voxels match, use --fix_affine") == 5

    assert check(boxes, "--fix_affine") == 0
    (line,) = warnings_in(capsys.readouterr().out)
    assert "found an affine that puts corners" in line
    assert line.endswith("; that of the image is used (and 4 more of this kind)")

    assert check(boxes, "--fix_affine", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["warnings"]
    assert [f"labelsTr/box_{number}" in "".join(listed) for number in range(3)] == [True] * 3

    status, out, err = train(*train_arguments(boxes, tmp_path / "run", *ITERATIONS, "--fix_affine"))
    assert (status, len(warnings_in(out))) == (0, 1), err
    assert train(*train_arguments(boxes, tmp_path / "run", *ITERATIONS, "--resume"))[0] == 2

    moved = tmp_path / "moved"  # the same voxels, images and labels with one affine
    shutil.copytree(box_template, moved)
    rewrite(
        moved,
        "*/*.nii.gz",
        lambda voxels, affine: (voxels, open_volume(str(boxes / "imagesTr" / "box_0.nii.gz")).affine, nothing),
    )
    assert train(*train_arguments(moved, tmp_path / "again", *ITERATIONS))[0] == 0
    for name, weight in read_weights(tmp_path / "run").items():
        assert torch.equal(weight, read_weights(tmp_path / "again")[name]), name

    status, out, _ = predict(*prediction_arguments(boxes, tmp_path / "out", trained))
    assert status == 1  # predicted, and not scored
    status, out, _ = predict(*prediction_arguments(boxes, tmp_path / "out", trained, "--fix_affine"))
    assert (status, len(warnings_in(out))) == (0, 1)
    assert "box_2" in out


def test_shapes_are_never_fixed(boxes, train, tmp_path):
    rewrite(boxes, "labelsTr/box_0*", lambda voxels, affine: (voxels[:-1], affine, nothing))
    result = train(*train_arguments(boxes, tmp_path / "run", "--fix_affine"))
    assert_one_line(result, "labelsTr/box_0", "found shape 35 x 28 x 18, expected 36 x 28 x 18")


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
        "training case box_0: found right (1 voxels), of which resampling leaves nothing (and 1 more of this kind)"
    )


def test_an_axis_that_resampling_reduces_to_one_voxel_is_warned_of(boxes, capsys):
    """Voxels of a thousandth of a mm without a unit."""
    rewrite(boxes, "*/box_0*", lambda voxels, affine: (voxels, np.diag([1e-3, 1e-3, 1e-3, 1]), nothing))
    assert check(boxes, "--headers_only") == 0
    (line,) = warnings_in(capsys.readouterr().out)
    found = "found 36 x 28 x 18 voxels of 0.001 x 0.001 x 0.001 mm, 1 x 1 x 1 once they are resampled"
    assert line == f"{boxes}/imagesTr/box_0.nii.gz: {found}"


@pytest.mark.parametrize(
    ("form", "found"),
    [
        ("qform", "found corners 5 mm apart in sform and qform; the sform is used"),
        ("pixdim", "found voxels of 1 x 1 x 1 mm in the sform and 1 x 1 x 2 mm in pixdim; the sform is used"),
    ],
)
def test_positions_that_readers_take_differently_are_warned_of(boxes, capsys, form, found):
    def contradict(header):
        if form == "qform":
            moved = header.get_best_affine()
            moved[0, 3] += 5
            header.set_qform(moved, 1)
            header["sform_code"] = 2  # with the code 1, ITK uses the sform as well
        else:
            header["pixdim"][3] = 2

    rewrite(boxes, "imagesTr/*", lambda voxels, affine: (voxels, affine, contradict))
    assert check(boxes, "--headers_only") == 0
    (line,) = warnings_in(capsys.readouterr().out)
    assert line == f"{boxes}/imagesTr/box_0.nii.gz: {found} (and 2 more of this kind)"


def test_nan_is_the_background_if_the_description_says_so(boxes, capsys, train, predict, trained, tmp_path):
    lowest = {}

    def blank(voxels, affine):
        voxels = voxels.copy()
        voxels[:3] = np.nan
        lowest[len(lowest)] = np.nanmin(voxels)
        return voxels, affine, nothing

    rewrite(boxes, "images*/*", blank)
    assert "found 1512 NaN or infinite voxels" in train(*train_arguments(boxes, tmp_path / "no", *ITERATIONS))[2]
    describe(boxes, nan="minimum")
    assert check(boxes) == 0
    out = capsys.readouterr().out
    assert "images: NaN stands for the minimum of its channel, as the description says" in out
    assert warnings_in(out) == [
        "training case box_0: found 1512 NaN voxels, which stand for the minimum (and 4 more of this kind)"
    ]
    status, out, _ = train(*train_arguments(boxes, tmp_path / "odd", *ITERATIONS))
    assert status == 0
    assert "NaN stands for the minimum" in out

    rewrite(boxes, "images*/*", lambda voxels, affine: (np.nan_to_num(voxels, nan=np.nanmin(voxels)), affine, nothing))
    describe(boxes)
    assert train(*train_arguments(boxes, tmp_path / "plain", *ITERATIONS))[0] == 0
    for name, weight in read_weights(tmp_path / "plain").items():
        assert torch.equal(weight, read_weights(tmp_path / "odd")[name]), name


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


def test_ignored_voxels_are_neither_learned_nor_scored(boxes, box_template, train, predict, tmp_path):
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


def test_regions_are_scored_beside_the_classes(boxes, train, predict, tmp_path):
    describe(boxes, regions={"both": ["left", "right"]})
    assert train(*train_arguments(boxes, tmp_path / "run"))[0] == 0
    assert predict(*prediction_arguments(boxes, tmp_path / "out", tmp_path / "run"))[0] == 0
    assert (tmp_path / "out" / "dice.csv").read_text().splitlines()[0] == "case,left,right,both,mean"


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

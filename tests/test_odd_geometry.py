"""Files whose position is unusual, contradictory or missing: read where ITK reads them, and doubts are said."""

import json
import shutil
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from conftest import REAL_DATA, assert_one_line, prediction_arguments, real_data, train_arguments
from odd_data import ITERATIONS, add_axes, check, drop_codes, nothing, read_weights, rewrite, warnings_in
from prediction_folders import path_of

from engine.data.nifti import encode_labels, open_volume


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


PLACED = {
    "metres": (to_metres, "found the unit metres, converted to voxels of 1 x 1 x 1 mm"),
    "microns": (to_microns, "found the unit microns, converted to voxels of 1 x 1 x 1 mm"),
    "long quaternions": (lengthen_quaternions, ""),
    "no position": (drop_codes, "found neither sform nor qform (both codes are 0)"),
    "an axis of length 1": (add_axes, ""),
}


@pytest.mark.parametrize(("change", "warning"), PLACED.values(), ids=PLACED)
def test_itk_places_a_prediction_where_it_places_the_image(boxes, trained, tmp_path, predict, change, warning):
    change(boxes)
    status, out, err = predict(*prediction_arguments(boxes, tmp_path / "out", trained))
    assert status == 0, err
    warned = warnings_in(out)
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


def test_labels_are_placed_on_their_images_only_on_request(
    boxes, box_template, capsys, train, predict, trained, tmp_path
):
    """Labels at the origin, as ITK's tools draw them on images without a position."""
    drop_codes(boxes, "images*/*")
    rewrite(boxes, "labels*/*", lambda voxels, affine: (voxels, np.diag([-1.0, -1.0, 1.0, 1.0]), nothing))
    assert check(boxes) == 2
    captured = capsys.readouterr()
    assert captured.err.count("expected the same affine; if the voxels match, use --fix_affine") == 5

    assert check(boxes, "--fix_affine") == 0
    position, line = warnings_in(capsys.readouterr().out)
    assert "found neither sform nor qform" in position
    assert "found an affine that puts corners" in line
    assert line.endswith(", whose affine is used (and 4 more of this kind)")

    assert check(boxes, "--fix_affine", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["warnings"]
    assert [f"labelsTr/box_{number}" in "".join(listed) for number in range(3)] == [True] * 3

    status, out, err = train(*train_arguments(boxes, tmp_path / "run", *ITERATIONS, "--fix_affine"))
    assert (status, len(warnings_in(out))) == (0, 2), err
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


def test_another_unit_is_named_before_fix_affine_is(boxes, capsys):
    rewrite(boxes, "images*/*", lambda voxels, affine: (voxels, affine, lambda header: header.set_xyzt_units("micron")))
    assert check(boxes) == 2
    err = capsys.readouterr().err
    assert err.count("expected the same affine; units are microns and mm") == 5
    assert "--fix_affine" not in err


def test_the_channel_axis_comes_last(boxes, capsys):
    rewrite(boxes, "*/box_0*", lambda voxels, affine: (voxels[None], affine, nothing))
    assert check(boxes) == 2
    assert (
        capsys.readouterr().err.count("(shape 1 x 36 x 28 x 18), with the axis of length 1 first instead of X, Y, Z")
        == 2
    )


def test_shapes_are_never_fixed(boxes, train, tmp_path):
    rewrite(boxes, "labelsTr/box_0*", lambda voxels, affine: (voxels[:-1], affine, nothing))
    result = train(*train_arguments(boxes, tmp_path / "run", "--fix_affine"))
    assert_one_line(result, "labelsTr/box_0", "found shape 35 x 28 x 18, expected 36 x 28 x 18")


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

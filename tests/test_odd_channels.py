"""Several channels as users bring them: in one file, in files by number or by ending, incomplete, or out of place."""

import shutil

import numpy as np
import pytest
import torch
from conftest import prediction_arguments, train_arguments, write_nifti
from odd_data import ITERATIONS, check, describe, edit_header, nothing, read_weights, rewrite, warnings_in
from prediction_folders import NAMES, path_of

from engine.data.nifti import open_volume, read_voxels

ENDINGS = {"T1": "_t1", "FLAIR": "_flair"}
RULES = {"T1": {"zscore": True}, "FLAIR": {"window": [0, 300]}}


def second_channel(voxels):
    return (300 - voxels).astype(np.float32)


def split_by_name(root, endings):
    """Write two channels of each image, the second first in the order of the names, and remove the image."""
    for path in sorted(root.glob("images*/box_?.nii.gz")):
        voxels, affine = read_voxels(str(path)), open_volume(str(path)).affine
        for ending, channel in zip(endings, (voxels, second_channel(voxels)), strict=True):
            write_nifti(path.with_name(path.name.replace(".nii.gz", f"{ending}.nii.gz")), channel, affine)
        path.unlink()


def in_one_file(root):
    describe(root, channels=list(ENDINGS), intensity=RULES)
    rewrite(
        root,
        "images*/*",
        lambda voxels, affine: (np.stack((voxels, second_channel(voxels)), axis=-1), affine, nothing),
    )


def by_number(root):
    describe(root, channels=list(ENDINGS), intensity=RULES)
    split_by_name(root, ("_0000", "_0001"))


def by_ending(root):
    describe(root, channels=ENDINGS, intensity=RULES)
    split_by_name(root, ENDINGS.values())


def test_channels_in_any_form_give_the_same_weights_and_predictions(boxes, tmp_path, capsys, train, predict):
    weights, predictions = {}, {}
    for form in (by_number, by_ending, in_one_file):
        root = shutil.copytree(boxes, tmp_path / form.__name__)
        run_folder, output = tmp_path / f"{root.name}_run", tmp_path / f"{root.name}_out"
        form(root)
        assert check(root) == 0
        outs = [capsys.readouterr().out]
        for result in (
            train(*train_arguments(root, run_folder, *ITERATIONS)),
            predict(*prediction_arguments(root, output, run_folder)),
        ):
            assert result[0] == 0, result
            outs.append(result[1])
        assert warnings_in("".join(outs)) == []
        weights[form] = read_weights(run_folder)
        predictions[form] = np.stack([read_voxels(str(path_of(output, name))) for name in NAMES])
    for name, weight in weights[by_number].items():
        assert torch.equal(weight, weights[by_ending][name]), name
        # The mean of a channel that is strided in memory is rounded differently.
        torch.testing.assert_close(weight, weights[in_one_file][name], rtol=1e-2, atol=1e-4)
    assert np.array_equal(predictions[by_number], predictions[by_ending])
    assert np.mean(predictions[by_number] != predictions[in_one_file]) < 1e-3


def test_brats_is_read_and_predicted_in_its_own_values(boxes, train, predict, tmp_path):
    """Labels 0, 2 and 4, channels by ending, regions: the weights are those of 0, 1 and 2."""
    plain = shutil.copytree(boxes, tmp_path / "plain")
    by_ending(plain)
    split_by_name(boxes, ENDINGS.values())
    values = np.array([0, 2, 4], np.uint8)
    rewrite(boxes, "labels*/*", lambda voxels, affine: (values[voxels], affine, nothing))
    describe(
        boxes,
        channels=ENDINGS,
        intensity=RULES,
        labels={"background": 0, "oedema": 2, "enhancing": 4},
        regions={"WT": ["oedema", "enhancing"], "ET": ["enhancing"]},
    )
    for root in (plain, boxes):
        run_folder, output = tmp_path / f"{root.name}_run", tmp_path / f"{root.name}_out"
        assert train(*train_arguments(root, run_folder, *ITERATIONS))[0] == 0
        assert predict(*prediction_arguments(root, output, run_folder))[0] == 0
    for name in NAMES:
        expected = values[read_voxels(str(path_of(tmp_path / "plain_out", name)))]
        assert np.array_equal(read_voxels(str(path_of(tmp_path / "boxes_out", name))), expected)
    table = [line.split(",") for line in (tmp_path / "boxes_out" / "dice.csv").read_text().splitlines()]
    assert table[0] == ["case", "oedema", "enhancing", "WT", "ET", "mean"]
    assert all(row[2] == row[4] for row in table[1:])


def test_another_number_of_channels_than_described_is_said(boxes, capsys, train, predict, trained, tmp_path):
    split_by_name(boxes, ("_0000", "_0001"))
    expected = (
        "found 2 files of box_0 (box_0_0000.nii.gz, box_0_0001.nii.gz) and 2 more like it",
        "expected 1 channel as in the description (box_0_0000)",
    )
    assert check(boxes) == 2
    for err in (
        capsys.readouterr().err,
        train(*train_arguments(boxes, tmp_path / "run"))[2],
        predict(*prediction_arguments(boxes, tmp_path / "out", trained))[2],
    ):
        assert any(all(part in line for part in expected) for line in err.splitlines())


@pytest.mark.parametrize(
    ("diagonal", "said"),
    [((-1.0, 1, 1, 1), ", whose affine is used"), ((1.0, 1, 0, 1), "; it is not used")],
    ids=["mirrored", "flat"],
)
def test_further_channels_are_placed_on_the_first_on_request(boxes, capsys, train, predict, tmp_path, diagonal, said):
    plain = shutil.copytree(boxes, tmp_path / "plain")
    by_ending(plain)
    by_ending(boxes)
    for path in boxes.glob("images*/*_flair*"):
        edit_header(path, 280, "<12f", *np.diag(diagonal)[:3].ravel())
    assert check(boxes) == 2
    assert "box_0_flair" in capsys.readouterr().err
    assert check(boxes, "--fix_affine") == 0
    (line,) = warnings_in(capsys.readouterr().out)
    assert line.endswith(f"{said} (and 4 more of this kind)")

    assert train(*train_arguments(plain, tmp_path / "plain_run", *ITERATIONS))[0] == 0
    status, out, err = train(*train_arguments(boxes, tmp_path / "run", *ITERATIONS, "--fix_affine"))
    assert (status, len(warnings_in(out))) == (0, 1), err
    weights = read_weights(tmp_path / "run")
    for name, weight in read_weights(tmp_path / "plain_run").items():
        assert torch.equal(weight, weights[name]), name
    assert predict(*prediction_arguments(boxes, tmp_path / "out", tmp_path / "run"))[0] == 1
    assert not list((tmp_path / "out").glob("*_seg*"))
    status, out, err = predict(*prediction_arguments(boxes, tmp_path / "out", tmp_path / "run", "--fix_affine"))
    assert (status, len(warnings_in(out))) == (0, 1), err
    assert predict(*prediction_arguments(plain, tmp_path / "plain_out", tmp_path / "plain_run"))[0] == 0
    for name in NAMES:
        assert path_of(tmp_path / "out", name).read_bytes() == path_of(tmp_path / "plain_out", name).read_bytes()

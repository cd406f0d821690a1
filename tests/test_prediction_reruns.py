"""A repeated prediction keeps finished label maps, but only if they are still valid."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, prediction_arguments, write_nifti
from prediction_folders import (
    NAMES,
    assert_same_files,
    copy_predictions,
    errors_at_the_end,
    path_of,
    rewrite,
    truncate,
)

from engine.prediction import ensemble, findings


def states(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.nii.gz")}


def test_rerun_keeps_what_is_finished(boxes, trained, predicted, tmp_path, predict, count_forwards):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    before = states(output)
    (output / "dice.json").unlink()
    status, out, _ = predict(*prediction_arguments(boxes, output, trained, "--preview"))
    assert status == 0
    assert "3 of 3 predictions are finished already" in out
    assert not count_forwards
    assert states(output) == before
    assert_same_files(output, predicted, ("dice.json", "dice.csv"))
    assert all((output / f"{name}.png").exists() for name in NAMES)


def test_overwrite_keeps_nothing(boxes, trained, predicted, tmp_path, predict, count_forwards):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    before = states(output)
    (output / "box_0.png").write_bytes(b"old")
    status, out, _ = predict(*prediction_arguments(boxes, output, trained, "--overwrite", "--preview"))
    assert status == 0
    assert "already" not in out
    assert len(count_forwards) == 3
    assert all(states(output)[name][0] > before[name][0] for name in before)
    assert_same_files(output, predicted, before)
    assert (output / "box_0.png").read_bytes() != b"old"
    assert (output / "box_0.png.old").read_bytes() == b"old"
    assert f"warning: {output}/box_0.png was not written by test_seg.py, and is kept as box_0.png.old" in out


def shift(path):
    image = nib.load(path)
    affine = image.affine + np.eye(4)[:, [3, 0, 1, 2]]
    write_nifti(path, np.asarray(image.dataobj), affine)


UNFINISHED = {
    "truncated": truncate,
    "without its last bytes of voxels": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", UNFINISHED.values(), ids=UNFINISHED)
def test_an_incomplete_label_map_is_predicted_again(
    boxes, trained, predicted, tmp_path, predict, count_forwards, damage
):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    damage(path_of(output, "box_1"))
    (output / ".box_2_seg.nii.gz.part").write_bytes(b"of a writer that was killed")
    status, out, _ = predict(*prediction_arguments(boxes, output, trained))
    assert status == 0
    assert "2 of 3 predictions are finished already" in out
    assert len(count_forwards) == 1
    assert_same_files(output, predicted, [path.name for path in predicted.iterdir()])


def test_a_changed_image_is_predicted_again(boxes, trained, predicted, tmp_path, predict, count_forwards):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    image = boxes / "imagesTr" / "box_1.nii.gz"
    rewrite(image, np.negative)
    os.utime(image, ns=(0, 0))  # a copied file may be older than the prediction
    assert predict(*prediction_arguments(boxes, output, trained))[0] == 0
    assert len(count_forwards) == 1
    assert path_of(output, "box_1").read_bytes() != path_of(predicted, "box_1").read_bytes()


def test_an_image_with_a_changed_affine_is_predicted_again(
    boxes, trained, predicted, tmp_path, predict, count_forwards
):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    for folder in ("imagesTr", "labelsTr"):
        shift(boxes / folder / "box_1.nii.gz")
    assert predict(*prediction_arguments(boxes, output, trained))[0] == 0
    assert len(count_forwards) == 1
    assert np.array_equal(
        nib.load(path_of(output, "box_1")).affine, nib.load(boxes / "imagesTr" / "box_1.nii.gz").affine
    )


def test_a_copied_image_counts_as_unchanged(boxes, trained, predicted, tmp_path, predict, count_forwards, monkeypatch):
    """The copy has a new modification time, as on the local disk of a node; each image is hashed once."""

    def count(path):
        hashed.append(path)
        return digest(path)

    hashed, digest = [], findings.digest_file
    monkeypatch.setattr(findings, "digest_file", count)
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    before = states(output)
    for name in NAMES:
        os.utime(boxes / "imagesTr" / f"{name}.nii.gz", ns=(0, 0))
    for _ in range(2):
        status, out, _ = predict(*prediction_arguments(boxes, output, trained))
        assert status == 0
        assert "3 of 3 predictions are finished already" in out
    assert not count_forwards
    assert states(output) == before
    assert len([path for path in hashed if "imagesTr" in path]) == len(NAMES)


def test_a_prediction_is_kept_while_its_image_is_missing(boxes, trained, predicted, tmp_path, predict, count_forwards):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    image = boxes / "imagesTr" / "box_1.nii.gz"
    image.rename(boxes / "away.nii.gz")
    image.symlink_to("/nowhere/box_1.nii.gz")
    status, _, err = predict(*prediction_arguments(boxes, output, trained))
    assert status == 1
    assert str(image) in errors_at_the_end(err)[0]
    assert states(output) == states(predicted)
    image.unlink()
    (boxes / "away.nii.gz").rename(image)
    assert predict(*prediction_arguments(boxes, output, trained))[0] == 0
    assert not count_forwards
    assert_same_files(output, predicted, [path.name for path in predicted.glob("dice.*")])


def test_overwriting_with_the_same_settings_loses_nothing_when_it_is_stopped(
    boxes, trained, predicted, tmp_path, predict, monkeypatch
):
    def stop(*_):
        raise KeyboardInterrupt

    output = copy_predictions(predicted, tmp_path / "out", boxes)
    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "predict_logits", stop)
        assert predict(*prediction_arguments(boxes, output, trained, "--overwrite"))[0] == 130
    assert_same_files(output, predicted, [f"{name}_seg.nii.gz" for name in NAMES])


def test_a_name_too_long_for_its_prediction_fails_only_that_case(boxes, trained, predicted, tmp_path, predict):
    name = "x" * 247
    for folder in ("imagesTr", "labelsTr"):
        (boxes / folder / "box_1.nii.gz").rename(boxes / folder / f"{name}.nii.gz")
    status, out, err = predict(*prediction_arguments(boxes, tmp_path / "out", trained, "--preview"))
    assert status == 1
    (line,) = errors_at_the_end(err)
    assert f"{name}_seg.nii.gz: cannot be written, expected a shorter name" in line
    assert "2 predictions in" in out
    assert_same_files(tmp_path / "out", predicted, ("box_0_seg.nii.gz", "box_2_seg.nii.gz"))


def test_the_old_prediction_of_a_now_unreadable_volume_is_removed(boxes, trained, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    (boxes / "imagesTr" / "box_1.nii.gz").write_text("no volume")
    status, out, _ = predict(*prediction_arguments(boxes, output, trained))
    assert status == 1
    assert "2 predictions in" in out
    assert not path_of(output, "box_1").exists()


@pytest.fixture(scope="module")
def swapped(trained, tmp_path_factory):
    """Folder with weights that exchange the labels left and right."""
    folder = tmp_path_factory.mktemp("swapped")
    content = torch.load(trained / "best_metric_model.pth", weights_only=True)
    for name in ("out.conv.conv.weight", "out.conv.conv.bias"):
        content["model"][name] = content["model"][name][[0, 2, 1]]
    torch.save(content, folder / "best_metric_model.pth")
    return folder


def test_predictions_with_other_settings_are_refused(boxes, trained, swapped, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    before = states(output)

    def assert_refused(*parts, weights=trained, more=()):
        status, _, err = predict(*prediction_arguments(boxes, output, weights, *more))
        assert status == 2
        (line,) = errors_at_the_end(err)
        assert line.startswith(f"error: --output: {output} holds ")
        assert line.endswith("expected another folder, or --overwrite, which replaces them")
        assert all(part in line for part in parts)
        assert states(output) == before

    assert_refused("trained_weights", weights=swapped)
    assert_refused("overlap 0.5 (now 0.25)", more=("--overlap", "0.25"))
    assert_refused("roi_size 32 32 16 (now 32 32 32)", more=("--roi_size", "32", "32", "32"))
    assert_refused("amp off (now bf16)", more=("--roi_size", "48", "48", "48", "--amp", "bf16"))
    description = json.loads((boxes / "boxes.json").read_text()) | {"spacing": [2, 2, 2]}
    (boxes / "other.json").write_text(json.dumps(description))
    assert_refused("dataset", more=("--dataset", boxes / "other.json"))
    for damage in (lambda path: path.write_text("{"), lambda path: path.write_text("[" * 100_000), Path.unlink):
        damage(output / "settings.json")
        assert_refused("no readable settings.json")


def test_overwrite_accepts_other_settings(boxes, trained, swapped, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    assert predict(*prediction_arguments(boxes, output, swapped, "--overwrite"))[0] == 0
    for name in NAMES:
        one, other = (np.asarray(nib.load(path_of(folder, name)).dataobj) for folder in (predicted, output))
        assert np.array_equal(np.array([0, 2, 1])[one], other)
    assert predict(*prediction_arguments(boxes, output, swapped))[0] == 0
    assert predict(*prediction_arguments(boxes, output, trained))[0] == 2


def test_overwriting_some_cases_with_other_settings_is_refused(boxes, swapped, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    one = ("--images", boxes / "imagesTr" / "box_1.nii.gz", "--overwrite")
    status, _, err = predict(*prediction_arguments(boxes, output, swapped, *one))
    assert status == 2
    assert errors_at_the_end(err)[0].endswith("expected another folder")
    assert_same_files(output, predicted, [path.name for path in predicted.iterdir()])


class Killed(BaseException):
    """Simulated kill."""


def test_a_killed_overwrite_leaves_no_prediction_with_wrong_settings(
    boxes, trained, swapped, predicted, tmp_path, predict, monkeypatch
):
    """Kill before each change of the folder in turn: settings.json always matches all predictions in the folder."""
    expected = {}
    for weights, folder in ((trained, predicted), (swapped, tmp_path / "swapped")):
        assert predict(*prediction_arguments(boxes, folder, weights))[0] == 0
        digest = json.loads((folder / "settings.json").read_text())["trained_weights"]
        expected[digest] = {name: path_of(folder, name).read_bytes() for name in NAMES}
    assert len(expected) == 2
    replace, unlink = os.replace, Path.unlink

    for moment in range(100):
        output = Path(shutil.copytree(predicted, tmp_path / str(moment)))
        changes = []

        def change(function, changes=changes, moment=moment):
            def changed(*args, **kwargs):
                if len(changes) == moment:
                    raise Killed
                changes.append(args)
                return function(*args, **kwargs)

            return changed

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", change(replace))
            patch.setattr(Path, "unlink", change(unlink))
            try:
                assert predict(*prediction_arguments(boxes, output, swapped, "--overwrite"))[0] == 0
                break
            except Killed:
                pass
        digest = json.loads((output / "settings.json").read_text())["trained_weights"]
        for path in output.glob("*_seg.nii.gz"):
            assert path.read_bytes() == expected[digest][path.name.removesuffix("_seg.nii.gz")]
    assert moment > 10


KILLED = """
import os, signal, sys
import test_seg
from engine.runtime import files
from engine.runtime.errors import run

replace = os.replace

def replace_until_killed(source, target):
    if str(target).endswith("box_1_seg.nii.gz"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_until_killed
sys.exit(run(test_seg.main, test_seg.parse_args(sys.argv[1:])))
"""


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_killed_run_is_finished_by_the_same_command(boxes, trained, predicted, tmp_path, predict, workers):
    output = tmp_path / "out"
    words = prediction_arguments(boxes, output, trained, "--num_workers", workers)
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=REPOSITORY, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {path.name for path in output.iterdir()} == {
        *("settings.json", "box_0_seg.nii.gz", ".box_1_seg.nii.gz.part", ".written_0.jsonl")
    }
    status, out, _ = predict(*words)
    assert status == 0
    assert "1 of 3 predictions are finished already" in out
    assert {path.name for path in output.iterdir()} == {path.name for path in predicted.iterdir()}
    assert_same_files(output, predicted, [path.name for path in predicted.iterdir()])

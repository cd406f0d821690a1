"""A case that fails keeps no other from being predicted; what is finished is kept, and only if it is still true."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, write_nifti

import test_seg as predict_script
from engine import case_prediction, prediction
from engine.errors import InputError, run

NAMES = ("box_0", "box_1", "box_2")


def arguments(boxes, output, trained, *more):
    """Predict the three training cases, with their labels."""
    images = ("--images", boxes / "imagesTr", "--output", output)
    weights = ("--trained_weights", trained / "best_metric_model.pth", "--gpu", "cpu", "--num_workers", "0")
    return [str(word) for word in (*images, *weights, *more)]


@pytest.fixture(scope="module")
def whole(box_template, trained, tmp_path_factory):
    """The output folder of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("whole")
    assert run(predict_script.main, predict_script.parse_args(arguments(box_template, output, trained))) == 0
    return output


@pytest.fixture
def count_forwards(monkeypatch):
    """The images that the network is given from now on."""
    seen = []
    predict_logits = case_prediction.predict_logits

    def record(network, image, window):
        seen.append(image)
        return predict_logits(network, image, window)

    monkeypatch.setattr(case_prediction, "predict_logits", record)
    return seen


def path_of(folder, name):
    return folder / f"{name}_seg.nii.gz"


def errors_at_the_end(err):
    """The errors' lines, which nothing may follow; progress bars wipe themselves out."""
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert lines[len(lines) - len(errors) :] == errors
    return errors


def assert_same_files(folder, expected, names):
    for name in names:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def rewrite(path, change):
    image = nib.load(path)
    write_nifti(path, change(np.asarray(image.dataobj).copy()), image.affine)


def put(value):
    def change(voxels):
        voxels[3, 4, 5] = value
        return voxels

    return change


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BROKEN_IMAGES = {
    "truncated": (truncate, "cannot be read"),
    "text": (lambda path: path.write_text("no volume"), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "NaN": (lambda path: rewrite(path, put(np.nan)), "NaN"),
    "2D": (lambda path: rewrite(path, lambda voxels: voxels[..., 0]), "2D"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("damage", "part"), BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
def test_unreadable_volume(boxes, trained, whole, tmp_path, predict, workers, damage, part):
    damage(boxes / "imagesTr" / "box_1.nii.gz")
    status, out, err = predict(*arguments(boxes, tmp_path / "out", trained, "--num_workers", workers))
    assert status == 1
    (line,) = errors_at_the_end(err)
    assert str(boxes / "imagesTr" / "box_1.nii.gz") in line
    assert part in line
    assert "2 predictions in" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("box_0_seg.nii.gz", "box_2_seg.nii.gz", "settings.json", "dice.json", "dice.csv")
    }
    assert_same_files(tmp_path / "out", whole, ("box_0_seg.nii.gz", "box_2_seg.nii.gz"))
    expected, found = (json.loads((folder / "dice.json").read_text())["cases"] for folder in (whole, tmp_path / "out"))
    assert found == {name: expected[name] for name in ("box_0", "box_2")}


def test_every_volume_unreadable(boxes, trained, tmp_path, predict):
    for name in NAMES:
        truncate(boxes / "imagesTr" / f"{name}.nii.gz")
    status, out, err = predict(*arguments(boxes, tmp_path / "out", trained))
    assert status == 1
    errors = errors_at_the_end(err)
    assert [name in line for name, line in zip(NAMES, errors, strict=True)] == [True] * 3
    assert "0 predictions in" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.json"]


BROKEN_LABELS = {
    "truncated": (truncate, "cannot be read"),
    "shape": (lambda path: rewrite(path, lambda voxels: voxels[:-1]), "35 x 28 x 18"),
    "affine": (lambda path: write_nifti(path, np.zeros((36, 28, 18), np.uint8), np.eye(4) * 2), "same affine"),
    "class": (lambda path: rewrite(path, put(7)), "values 7"),
    "negative": (lambda path: rewrite(path, lambda voxels: put(-1)(voxels.astype(np.int16))), "values -1"),
}


@pytest.mark.parametrize(("damage", "part"), BROKEN_LABELS.values(), ids=BROKEN_LABELS)
def test_label_that_does_not_fit(boxes, trained, whole, tmp_path, predict, damage, part):
    damage(boxes / "labelsTr" / "box_1.nii.gz")
    status, out, err = predict(*arguments(boxes, tmp_path / "out", trained, "--preview"))
    assert status == 1
    (line,) = errors_at_the_end(err)
    assert str(boxes / "labelsTr" / "box_1.nii.gz") in line
    assert part in line
    assert "3 predictions in" in out
    assert_same_files(tmp_path / "out", whole, [f"{name}_seg.nii.gz" for name in NAMES])
    assert (tmp_path / "out" / "box_1.png").exists()
    assert set(json.loads((tmp_path / "out" / "dice.json").read_text())["cases"]) == {"box_0", "box_2"}


SURPRISES = {
    "GPU memory": (torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB\nof 8"), "expected lower --sw_batch_size"),
    "memory": (MemoryError(), "expected lower --sw_batch_size"),
    "ours": (KeyError("x"), "KeyError: 'x'"),
    "no message": (AssertionError(), "AssertionError"),
    "mistake": (InputError("box_1: one\ntwo"), "one; two"),
}


@pytest.mark.parametrize(("error", "part"), SURPRISES.values(), ids=SURPRISES)
def test_whatever_happens_to_a_case_happens_to_no_other(
    boxes, trained, whole, tmp_path, predict, monkeypatch, count_forwards, error, part
):
    predict_logits = case_prediction.predict_logits

    def fail(network, image, window):
        logits = predict_logits(network, image, window)
        if len(count_forwards) == 2:
            raise error
        return logits

    monkeypatch.setattr(case_prediction, "predict_logits", fail)
    status, _, err = predict(*arguments(boxes, tmp_path / "out", trained))
    assert status == 1
    (line,) = errors_at_the_end(err)
    assert line.startswith("error: box_1: ")
    assert part in line
    assert_same_files(tmp_path / "out", whole, ("box_0_seg.nii.gz", "box_2_seg.nii.gz"))
    assert not path_of(tmp_path / "out", "box_1").exists()


def test_reason_is_the_first_error_behind_those_of_the_pipeline():
    mistake, wrapped = InputError("/data/box_1.nii.gz: cannot be read"), RuntimeError("applying transform <Spacingd>")
    mistake.__cause__, wrapped.__cause__ = OSError("disk"), mistake
    assert case_prediction.describe_error("box_1", wrapped) == "/data/box_1.nii.gz: cannot be read"


@pytest.fixture
def fill_disk(monkeypatch):
    """Make a function of a module find the disk full from its second call on, until the block ends."""

    @contextmanager
    def fill(module, name):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        function, calls = getattr(module, name), []

        def write(*args):
            if calls:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
            calls.append(args)
            try:
                function(*args)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # before pytest writes

        with monkeypatch.context() as patch:
            patch.setattr(module, name, write)
            yield

    return fill


def test_full_disk_ends_the_run_and_the_next_one_goes_on(boxes, trained, whole, tmp_path, predict, fill_disk):
    output = tmp_path / "out"
    with fill_disk(prediction, "save_labels"):
        status, _, err = predict(*arguments(boxes, output, trained))
    assert status == 2
    (line,) = errors_at_the_end(err)
    assert f"{path_of(output, 'box_1')}: cannot be written" in line
    assert {path.name for path in output.iterdir()} == {"box_0_seg.nii.gz", "settings.json"}
    status, out, _ = predict(*arguments(boxes, output, trained))
    assert status == 0
    assert "1 of 3 predictions were there already" in out
    assert_same_files(output, whole, [path.name for path in whole.iterdir()])


def test_picture_that_cannot_be_written_ends_the_run(boxes, trained, tmp_path, predict, fill_disk):
    with fill_disk(case_prediction, "save_png"):
        status, _, err = predict(*arguments(boxes, tmp_path / "out", trained, "--preview"))
    assert status == 2
    (line,) = errors_at_the_end(err)
    assert f"{tmp_path / 'out' / 'box_1.png'}: cannot be written" in line
    assert not path_of(tmp_path / "out", "box_2").exists()


def test_what_cannot_be_removed_is_named(boxes, trained, tmp_path, predict):
    (tmp_path / "out" / "box_0.png").mkdir(parents=True)
    status, _, err = predict(*arguments(boxes, tmp_path / "out", trained))
    assert status == 2
    assert "box_0.png cannot be removed" in errors_at_the_end(err)[0]


def states(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.nii.gz")}


def test_rerun_keeps_what_is_finished(boxes, trained, whole, tmp_path, predict, count_forwards):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    before = states(output)
    (output / "dice.json").unlink()
    status, out, _ = predict(*arguments(boxes, output, trained, "--preview"))
    assert status == 0
    assert "3 of 3 predictions were there already" in out
    assert not count_forwards
    assert states(output) == before
    assert_same_files(output, whole, ("dice.json", "dice.csv"))
    assert all((output / f"{name}.png").exists() for name in NAMES)


def test_overwrite_keeps_nothing(boxes, trained, whole, tmp_path, predict, count_forwards):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    before = states(output)
    (output / "box_0.png").write_bytes(b"old")
    status, out, _ = predict(*arguments(boxes, output, trained, "--overwrite", "--preview"))
    assert status == 0
    assert "already" not in out
    assert len(count_forwards) == 3
    assert all(states(output)[name][0] > before[name][0] for name in before)
    assert_same_files(output, whole, before)
    assert (output / "box_0.png").read_bytes() != b"old"


def shift(path):
    image = nib.load(path)
    affine = image.affine + np.eye(4)[:, [3, 0, 1, 2]]
    write_nifti(path, np.asarray(image.dataobj), affine)


UNFINISHED = {
    "truncated": truncate,
    "without its last bytes of voxels": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "another affine": shift,
    "another shape": lambda path: rewrite(path, lambda voxels: voxels[:-1]),
    "no class": lambda path: rewrite(path, put(9)),
    "another type": lambda path: rewrite(path, lambda voxels: voxels.astype(np.float32)),
}


@pytest.mark.parametrize("damage", UNFINISHED.values(), ids=UNFINISHED)
def test_prediction_that_is_not_whole_or_elsewhere_is_made_again(
    boxes, trained, whole, tmp_path, predict, count_forwards, damage
):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    damage(path_of(output, "box_1"))
    (output / ".box_2_seg.nii.gz.part").write_bytes(b"of a writer that was killed")
    status, out, _ = predict(*arguments(boxes, output, trained))
    assert status == 0
    assert "2 of 3 predictions were there already" in out
    assert len(count_forwards) == 1
    assert_same_files(output, whole, [path.name for path in whole.iterdir()])


def test_prediction_of_another_image_of_that_name_is_made_again(
    boxes, trained, whole, tmp_path, predict, count_forwards
):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    image = boxes / "imagesTr" / "box_1.nii.gz"
    rewrite(image, np.negative)
    os.utime(image, ns=(0, 0))  # copied from somewhere, older than the prediction
    assert predict(*arguments(boxes, output, trained))[0] == 0
    assert len(count_forwards) == 1
    assert path_of(output, "box_1").read_bytes() != path_of(whole, "box_1").read_bytes()


def test_prediction_whose_image_moved_is_made_again(boxes, trained, whole, tmp_path, predict, count_forwards):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    for folder in ("imagesTr", "labelsTr"):
        shift(boxes / folder / "box_1.nii.gz")
    assert predict(*arguments(boxes, output, trained))[0] == 0
    assert len(count_forwards) == 1
    assert np.array_equal(
        nib.load(path_of(output, "box_1")).affine, nib.load(boxes / "imagesTr" / "box_1.nii.gz").affine
    )


def test_old_prediction_of_a_volume_that_is_unreadable_now_is_not_left(boxes, trained, whole, tmp_path, predict):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    (boxes / "imagesTr" / "box_1.nii.gz").write_text("no volume")
    status, out, _ = predict(*arguments(boxes, output, trained))
    assert status == 1
    assert "2 predictions in" in out
    assert not path_of(output, "box_1").exists()


@pytest.fixture(scope="module")
def swapped(trained, tmp_path_factory):
    """A folder with weights that call left right."""
    folder = tmp_path_factory.mktemp("swapped")
    content = torch.load(trained / "best_metric_model.pth", weights_only=True)
    for name in ("out.conv.conv.weight", "out.conv.conv.bias"):
        content["model"][name] = content["model"][name][[0, 2, 1]]
    torch.save(content, folder / "best_metric_model.pth")
    return folder


def test_predictions_of_other_settings_are_not_taken_for_these(boxes, trained, swapped, whole, tmp_path, predict):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    before = states(output)

    def assert_refused(*parts, weights=trained, more=()):
        status, _, err = predict(*arguments(boxes, output, weights, *more))
        assert status == 2
        (line,) = errors_at_the_end(err)
        assert line.startswith(f"error: --output: {output} holds predictions")
        assert line.endswith("expected --overwrite or another folder")
        assert all(part in line for part in parts)
        assert states(output) == before

    assert_refused("trained_weights", weights=swapped)
    assert_refused("overlap 0.5 (now 0.25)", more=("--overlap", "0.25"))
    assert_refused("roi_size [32, 32, 16] (now [32, 32, 32])", more=("--roi_size", "32", "32", "32"))
    assert_refused('amp "off" (now "bfloat16")', more=("--roi_size", "48", "48", "48", "--amp", "bf16"))
    description = json.loads((boxes / "boxes.json").read_text()) | {"spacing": [2, 2, 2]}
    (boxes / "other.json").write_text(json.dumps(description))
    assert_refused("dataset", more=("--dataset", boxes / "other.json"))
    for damage in (lambda path: path.write_text("{"), Path.unlink):
        damage(output / "settings.json")
        assert_refused("no readable settings.json")


def test_overwrite_takes_other_settings(boxes, trained, swapped, whole, tmp_path, predict):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    assert predict(*arguments(boxes, output, swapped, "--overwrite"))[0] == 0
    for name in NAMES:
        one, other = (np.asarray(nib.load(path_of(folder, name)).dataobj) for folder in (whole, output))
        assert np.array_equal(np.array([0, 2, 1])[one], other)
    assert predict(*arguments(boxes, output, swapped))[0] == 0
    assert predict(*arguments(boxes, output, trained))[0] == 2


def test_overwriting_a_part_with_other_settings_would_leave_a_mixture(boxes, swapped, whole, tmp_path, predict):
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    one = ("--images", boxes / "imagesTr" / "box_1.nii.gz", "--overwrite")
    status, _, err = predict(*arguments(boxes, output, swapped, *one))
    assert status == 2
    assert errors_at_the_end(err)[0].endswith("expected another folder")
    assert_same_files(output, whole, [path.name for path in whole.iterdir()])


class Killed(BaseException):
    """Stands for a kill."""


def test_overwriting_that_is_killed_leaves_no_prediction_for_anothers(
    boxes, trained, swapped, whole, tmp_path, predict, monkeypatch
):
    """A kill before each change of the folder in turn: settings.json is true of every prediction there."""
    expected = {}
    for weights, folder in ((trained, whole), (swapped, tmp_path / "swapped")):
        assert predict(*arguments(boxes, folder, weights))[0] == 0
        digest = json.loads((folder / "settings.json").read_text())["trained_weights"]
        expected[digest] = {name: path_of(folder, name).read_bytes() for name in NAMES}
    assert len(expected) == 2
    replace, unlink = os.replace, Path.unlink

    for moment in range(100):
        output = Path(shutil.copytree(whole, tmp_path / str(moment)))
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
                assert predict(*arguments(boxes, output, swapped, "--overwrite"))[0] == 0
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
from engine import files
from engine.errors import run

replace = os.replace

def replace_until_killed(source, target):
    if str(target).endswith("box_1_seg.nii.gz"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_until_killed
sys.exit(run(test_seg.main, test_seg.parse_args(sys.argv[1:])))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_run_is_finished_by_the_same_command(boxes, trained, whole, tmp_path, predict, workers):
    output = tmp_path / "out"
    words = arguments(boxes, output, trained, "--num_workers", workers)
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=REPOSITORY, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {path.name for path in output.iterdir()} == {
        *("settings.json", "box_0_seg.nii.gz", ".box_1_seg.nii.gz.part")
    }
    status, out, _ = predict(*words)
    assert status == 0
    assert "1 of 3 predictions were there already" in out
    assert {path.name for path in output.iterdir()} == {path.name for path in whole.iterdir()}
    assert_same_files(output, whole, [path.name for path in whole.iterdir()])

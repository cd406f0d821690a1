"""A case that fails does not stop the prediction of the others."""

import json
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import prediction_arguments, write_nifti
from prediction_folders import (
    NAMES,
    assert_same_files,
    copy_predictions,
    errors_at_the_end,
    path_of,
    put,
    rewrite,
    truncate,
)

from engine.prediction import ensemble, post_transforms, predict_cases
from engine.runtime.errors import InputError, describe_error

BROKEN_IMAGES = {
    "truncated": (truncate, "cannot be read"),
    "text": (lambda path: path.write_text("no volume"), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "NaN": (lambda path: rewrite(path, put(np.nan)), "NaN"),
    "2D": (lambda path: rewrite(path, lambda voxels: voxels[..., 0]), "2D"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("damage", "part"), BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
def test_unreadable_volume(boxes, trained, predicted, tmp_path, predict, workers, damage, part):
    damage(boxes / "imagesTr" / "box_1.nii.gz")
    status, out, err = predict(*prediction_arguments(boxes, tmp_path / "out", trained, "--num_workers", workers))
    assert status == 1
    (line,) = errors_at_the_end(err)
    assert str(boxes / "imagesTr" / "box_1.nii.gz") in line
    assert part in line
    assert "2 predictions in" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("box_0_seg.nii.gz", "box_2_seg.nii.gz", "settings.json", "dice.json", "dice.csv")
    }
    assert_same_files(tmp_path / "out", predicted, ("box_0_seg.nii.gz", "box_2_seg.nii.gz"))
    expected, found = (
        json.loads((folder / "dice.json").read_text())["cases"] for folder in (predicted, tmp_path / "out")
    )
    assert found == {name: expected[name] for name in ("box_0", "box_2")}


def test_every_volume_unreadable(boxes, trained, tmp_path, predict):
    for name in NAMES:
        truncate(boxes / "imagesTr" / f"{name}.nii.gz")
    status, out, err = predict(*prediction_arguments(boxes, tmp_path / "out", trained))
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
def test_label_that_does_not_fit(boxes, trained, predicted, tmp_path, predict, damage, part):
    damage(boxes / "labelsTr" / "box_1.nii.gz")
    status, out, err = predict(*prediction_arguments(boxes, tmp_path / "out", trained, "--preview"))
    assert status == 1
    (line,) = errors_at_the_end(err)
    assert str(boxes / "labelsTr" / "box_1.nii.gz") in line
    assert part in line
    assert "3 predictions in" in out
    assert_same_files(tmp_path / "out", predicted, [f"{name}_seg.nii.gz" for name in NAMES])
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
def test_an_error_in_one_case_does_not_affect_the_others(
    boxes, trained, predicted, tmp_path, predict, monkeypatch, count_forwards, error, part
):
    predict_logits = ensemble.predict_logits

    def fail(*args):
        logits = predict_logits(*args)
        if len(count_forwards) == 2:
            raise error
        return logits

    monkeypatch.setattr(ensemble, "predict_logits", fail)
    status, _, err = predict(*prediction_arguments(boxes, tmp_path / "out", trained))
    assert status == 1
    (line,) = errors_at_the_end(err)
    assert line.startswith("error: box_1: ")
    assert part in line
    assert_same_files(tmp_path / "out", predicted, ("box_0_seg.nii.gz", "box_2_seg.nii.gz"))
    assert not path_of(tmp_path / "out", "box_1").exists()


def test_the_reported_reason_is_the_cause_of_the_pipelines_error():
    mistake, wrapped = InputError("/data/box_1.nii.gz: cannot be read"), RuntimeError("applying transform <Spacingd>")
    mistake.__cause__, wrapped.__cause__ = OSError("disk"), mistake
    assert describe_error("box_1", wrapped, "--num_workers") == "/data/box_1.nii.gz: cannot be read"


@pytest.fixture
def fill_disk(monkeypatch):
    """Simulate a full disk in a function of a module, from its second call to the end of the block."""

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


def test_a_full_disk_ends_the_run_and_the_next_run_continues(boxes, trained, predicted, tmp_path, predict, fill_disk):
    output = tmp_path / "out"
    with fill_disk(post_transforms, "write_output"):
        status, _, err = predict(*prediction_arguments(boxes, output, trained))
    assert status == 2
    (line,) = errors_at_the_end(err)
    assert f"{output / '.written_0.jsonl'}: cannot be written" in line
    assert {path.name for path in output.iterdir()} == {"box_0_seg.nii.gz", "settings.json", ".written_0.jsonl"}
    status, out, _ = predict(*prediction_arguments(boxes, output, trained))
    assert status == 0
    assert "1 of 3 predictions are finished already" in out
    assert_same_files(output, predicted, [path.name for path in predicted.iterdir()])


def test_picture_that_cannot_be_written_ends_the_run(boxes, trained, tmp_path, predict, fill_disk):
    with fill_disk(predict_cases, "write_output"):
        status, _, err = predict(*prediction_arguments(boxes, tmp_path / "out", trained, "--preview"))
    assert status == 2
    (line,) = errors_at_the_end(err)
    assert f"{tmp_path / 'out' / '.written_0.jsonl'}: cannot be written" in line
    assert not path_of(tmp_path / "out", "box_2").exists()


def test_a_file_that_cannot_be_removed_is_named(boxes, trained, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    (output / "dice.csv").unlink()
    (output / "dice.csv").mkdir()
    status, _, err = predict(*prediction_arguments(boxes, output, trained, "--overwrite"))
    assert status == 2
    assert "dice.csv cannot be removed" in errors_at_the_end(err)[0]

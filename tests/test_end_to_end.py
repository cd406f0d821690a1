"""Both scripts on small volumes: training, kill, resume, prediction."""

import json
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import (
    REAL_DATA,
    REPOSITORY,
    SMALL,
    real_data,
    train_arguments,
    wait_for_iteration,
    wait_for_the_next_second,
    write_nifti,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.evaluation.metrics import dice_by_structure
from engine.training import step as training_step


def weights(folder, name="last_checkpoint.pth"):
    return torch.load(folder / name, weights_only=True)["model"]


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_training_writes_checkpoints_arguments_and_logs(trained):
    assert {path.name for path in trained.iterdir()} == {
        "args.json",
        "best_metric_model.pth",
        "dice.csv",
        "dice.json",
        "last_checkpoint.pth",
        "previous_checkpoint.pth",
        "tensorboard",
        "versions.json",
    }
    assert json.loads((trained / "args.json").read_text())["kernel_size"] == 5
    best = torch.load(trained / "best_metric_model.pth", weights_only=True)
    assert best["config"]["overrides"] == {"feat_size": [8, 8, 8, 8], "kernel_size": 5}
    log = EventAccumulator(str(trained / "tensorboard")).Reload()
    scalars = {"train/loss", "train/lr", "train/data_wait_s", "train/compute_s", "dice/mean", "dice/left", "dice/right"}
    assert scalars <= set(log.Tags()["scalars"])
    masks = {tag for tag in log.Tags()["scalars"] if tag.startswith("mask/")}
    assert masks == {
        f"mask/rep3d.stages.{stage}.{block}/{name}"
        for stage in range(4)
        for block in range(2)
        for name in ("correction", "smallest")
    }
    written = json.loads((trained / "dice.json").read_text())
    assert written["mean"]["mean"] == pytest.approx(log.Scalars("dice/mean")[-1].value, abs=1e-5)
    assert set(log.Tags()["images"]) == {"validation case", "mask M, central slice"}
    assert [event.step for event in log.Scalars("train/loss")] == list(range(1, 61))
    losses = [event.value for event in log.Scalars("train/loss")]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_same_seed_same_weights_whatever_the_workers_and_the_cache(boxes, tmp_path, train):
    disk = ("--cache_dir", tmp_path / "cache")
    variants = {"a": (), "b": ("--num_workers", "2"), "c": ("--cache_rate", "0"), "d": ("--seed", "1"), "e": disk}
    for name, more in {**variants, "f": (*disk, "--num_workers", "2")}.items():
        status, out, _ = train(*train_arguments(boxes, tmp_path / name, *more))
        assert status == 0
        assert ("3 of 3 cases to preprocess" in out) == (name == "e")  # "f" uses the cache of "e"
    assert_equal_weights(weights(tmp_path / "a"), weights(tmp_path / "b"))
    for name in "cef":
        assert_equal_weights(weights(tmp_path / "a"), weights(tmp_path / name))
    assert not torch.equal(
        weights(tmp_path / "a")["out.conv.conv.weight"], weights(tmp_path / "d")["out.conv.conv.weight"]
    )


@pytest.mark.parametrize("batch_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_resumed_run_ends_with_the_same_weights(boxes, tmp_path, train, batch_size):
    more = ("--max_iter", "12", "--eval_step", "2", "--batch_size", batch_size, "--num_workers", "1")
    assert train(*train_arguments(boxes, tmp_path / "whole", *more))[0] == 0
    arguments = [str(word) for word in train_arguments(boxes, tmp_path / "killed", *more)]
    process = subprocess.Popen([sys.executable, "main_train.py", *arguments], cwd=REPOSITORY, start_new_session=True)
    try:
        wait_for_iteration(tmp_path / "killed" / "last_checkpoint.pth", 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for_the_next_second()
    assert 2 <= torch.load(tmp_path / "killed" / "last_checkpoint.pth", weights_only=True)["iteration"] < 12
    assert train(*arguments, "--resume")[0] == 0
    assert_equal_weights(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    best = "best_metric_model.pth"
    assert_equal_weights(weights(tmp_path / "whole", best), weights(tmp_path / "killed", best))
    log = EventAccumulator(str(tmp_path / "killed" / "tensorboard")).Reload()
    assert [event.step for event in log.Scalars("train/loss")] == list(range(1, 13))


def test_run_killed_before_its_first_evaluation_resumes_at_the_beginning(boxes, tmp_path, train, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(*train_arguments(boxes, whole))[0] == 0

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_step, "train_step", interrupt)
        assert train(*train_arguments(boxes, cut))[0] == 130
    assert torch.load(cut / "last_checkpoint.pth", weights_only=True)["iteration"] == 0
    assert train(*train_arguments(boxes, cut), "--resume")[0] == 0
    assert_equal_weights(weights(whole), weights(cut))


def test_losses_that_stay_infinite_end_the_run_and_keep_the_last_weights(boxes, tmp_path, train):
    more = ("--lr", "1e30", "--lr_schedule", "constant", "--max_iter", "40", "--eval_step", "40")
    status, out, err = train(*train_arguments(boxes, tmp_path / "run", *more))
    assert status == 2
    assert "--lr: found 20 iterations in a row" in err
    assert "1 steps skipped" in out
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_pretrained_weights_are_where_training_starts(boxes, trained, tmp_path, train):
    pretrained = ("--pretrain", "True", "--pretrained_weights", trained / "best_metric_model.pth")
    status, *_ = train(*train_arguments(boxes, tmp_path / "run", "--lr", "1e-12", "--max_iter", "1", *pretrained))
    assert status == 0
    start, end = weights(trained, "best_metric_model.pth"), weights(tmp_path / "run")
    assert all(
        torch.allclose(start[key], end[key], atol=1e-6) for key in start if "running" not in key and "num" not in key
    )


def test_prediction_lies_on_the_native_grid_and_scores_as_reported(boxes, trained, tmp_path, predict):
    weights_file = trained / "best_metric_model.pth"
    status, out, _ = predict(
        *("--root", boxes, "--output", tmp_path, "--trained_weights", weights_file, "--preview", "--gpu", "cpu")
    )
    assert status == 0
    report = json.loads((tmp_path / "dice.json").read_text())
    for name in ("box_8", "box_9"):
        image = nib.load(boxes / "imagesVal" / f"{name}.nii.gz")
        prediction = nib.load(tmp_path / f"{name}_seg.nii.gz")
        assert prediction.shape == image.shape
        assert np.array_equal(prediction.affine, image.affine)
        assert prediction.get_data_dtype() == np.uint8
        label = np.asarray(nib.load(boxes / "labelsVal" / f"{name}.nii.gz").dataobj)
        dice = dice_by_structure(np.asarray(prediction.dataobj), label, [[1], [2]])
        assert [report["cases"][name][side] for side in ("left", "right")] == pytest.approx(dice, abs=1e-6)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert report["mean"]["mean"] > 0.8
    assert (tmp_path / "dice.csv").read_text().splitlines()[0] == "case,left,right,mean"
    assert "box_8" in out
    assert "left" in out


def test_compiled_training_is_the_same(boxes, tmp_path, train, monkeypatch):
    """Uses the backend that runs the traced graph as it is; tests/networks/test_compile.py tests the compiler."""
    traced = []

    def trace(network):
        traced.append(network)
        return compile_network(network, backend="eager")

    compile_network = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    for name, more in {"plain": (), "compiled": ("--compile",)}.items():
        assert train(*train_arguments(boxes, tmp_path / name, "--max_iter", "2", *more))[0] == 0
    assert len(traced) == 1
    assert_equal_weights(weights(tmp_path / "plain"), weights(tmp_path / "compiled"))


def test_state_dict_alone_predicts_the_same_with_flags(boxes, trained, tmp_path, predict):
    torch.save(weights(trained, "best_metric_model.pth"), tmp_path / "bare.pth")
    common = ("--root", boxes, "--gpu", "cpu", "--num_workers", "0")
    assert predict(*common, "--output", tmp_path / "a", "--trained_weights", trained / "best_metric_model.pth")[0] == 0
    flags = ("--dataset", boxes / "boxes.json", *SMALL)
    assert predict(*common, "--output", tmp_path / "b", "--trained_weights", tmp_path / "bare.pth", *flags)[0] == 0
    for name in ("box_8_seg.nii.gz", "box_9_seg.nii.gz"):
        one, other = (np.asarray(nib.load(tmp_path / run / name).dataobj) for run in "ab")
        assert np.array_equal(one, other)


def test_prediction_of_a_test_folder_a_folder_and_a_file(boxes, trained, tmp_path, predict, monkeypatch):
    common = ("--trained_weights", trained / "best_metric_model.pth", "--gpu", "cpu", "--num_workers", "0")
    (boxes / "imagesTs").mkdir()
    (boxes / "imagesVal" / "box_8.nii.gz").rename(boxes / "imagesTs" / "test_1.nii.gz")
    assert predict(*common, "--root", boxes, "--output", tmp_path / "root")[0] == 0
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"test_1_seg.nii.gz", "settings.json"}  # no Dice
    assert predict(*common, "--images", boxes / "imagesTr", "--output", tmp_path / "folder")[0] == 0
    assert (tmp_path / "folder" / "dice.csv").exists()
    monkeypatch.chdir(boxes / "imagesTr")
    assert predict(*common, "--images", "box_1.nii.gz", "--output", tmp_path / "file")[0] == 0
    assert {path.name for path in (tmp_path / "file").iterdir()} == {
        *("box_1_seg.nii.gz", "settings.json", "dice.csv", "dice.json")
    }


@pytest.mark.parametrize(
    "separate", [pytest.param(True, id="one file per channel"), pytest.param(False, id="4D", marks=pytest.mark.slow)]
)
def test_several_channels(tmp_path, train, predict, box_template, separate):
    """The first channel is noise, the second contains the boxes."""
    root = tmp_path / "two"
    for part, names in {"Tr": ("box_0", "box_1"), "Val": ("box_2",)}.items():
        for name in names:
            shown = np.asarray(nib.load(box_template / "imagesTr" / f"{name}.nii.gz").dataobj)
            channels = [np.random.default_rng(0).normal(0, 1, shown.shape).astype(np.float32), shown]
            if separate:
                for number, channel in enumerate(channels):
                    write_nifti(root / f"images{part}" / f"{name}_000{number}.nii.gz", channel)
            else:
                write_nifti(root / f"images{part}" / f"{name}.nii.gz", np.stack(channels, axis=-1))
            (root / f"labels{part}").mkdir(exist_ok=True)
            shutil.copy(box_template / "labelsTr" / f"{name}.nii.gz", root / f"labels{part}")
    description = json.loads((box_template / "boxes.json").read_text()) | {"channels": ["noise", "boxes"]}
    (root / "boxes.json").write_text(json.dumps(description))
    more = ("--max_iter", "30", "--eval_step", "30", "--lr", "0.01")
    assert train(*train_arguments(root, tmp_path / "run", *more))[0] == 0
    trained = ("--trained_weights", tmp_path / "run" / "best_metric_model.pth", "--gpu", "cpu", "--preview")
    assert predict("--root", root, "--output", tmp_path / "out", *trained)[0] == 0
    prediction = nib.load(tmp_path / "out" / "box_2_seg.nii.gz")
    assert prediction.shape == (36, 28, 18)
    assert np.array_equal(prediction.affine, np.eye(4))
    assert json.loads((tmp_path / "out" / "dice.json").read_text())["mean"]["mean"] > 0.4


def test_phantoms_of_every_orientation_come_back_on_their_grid(phantoms, tmp_path, train, predict):
    description = REPOSITORY / "experiments" / "demo" / "dataset.json"
    arguments = (
        "--root",
        phantoms,
        "--output",
        tmp_path / "run",
        "--dataset",
        description,
        "--num_workers",
        "0",
        *SMALL,
    )
    assert train(*arguments, "--max_iter", "1")[0] == 0
    weights_file = tmp_path / "run" / "best_metric_model.pth"
    assert predict("--root", phantoms, "--output", tmp_path, "--trained_weights", weights_file, "--gpu", "cpu")[0] == 0
    codes = set()
    for path in (phantoms / "imagesVal").iterdir():
        image, prediction = nib.load(path), nib.load(tmp_path / path.name.replace(".nii", "_seg.nii"))
        assert prediction.shape == image.shape
        assert np.array_equal(prediction.affine, image.affine)
        codes.add(nib.aff2axcodes(image.affine))
    assert len(codes) == 3


@real_data("ct_spleen")
def test_real_ct_comes_back_on_its_grid(tmp_path, train, predict):
    root = REAL_DATA / "ct_spleen"
    data = ("--root", root, "--dataset", "amos", "--gpu", "cpu", "--num_workers", "0")
    network = ("--feat_size", "8", "8", "8", "8", "--kernel_size", "21", "--roi_size", "64", "64", "32")
    assert train(*data, *network, "--output", tmp_path / "run", "--max_iter", "1")[0] == 0
    weights_file = tmp_path / "run" / "best_metric_model.pth"
    assert predict(*data, "--output", tmp_path / "out", "--trained_weights", weights_file)[0] == 0
    image = nib.load(root / "imagesVal" / "spleen_2.nii.gz")
    prediction = nib.load(tmp_path / "out" / "spleen_2_seg.nii.gz")
    assert prediction.shape == image.shape == (164, 166, 26)
    assert np.array_equal(prediction.affine, image.affine)


@pytest.mark.slow
@real_data("msd_hippocampus")
def test_real_mri_trains(tmp_path, train):
    description = REPOSITORY / "experiments" / "hippocampus" / "dataset.json"
    data = ("--root", REAL_DATA / "msd_hippocampus", "--dataset", description, "--gpu", "cpu", "--num_workers", "0")
    network = ("--feat_size", "8", "8", "8", "8", "--roi_size", "32", "32", "32", "--kernel_size", "5")
    status, out, _ = train(*data, *network, "--output", tmp_path, "--max_iter", "2", "--cache_rate", "0")
    assert status == 0
    assert "120 training and 40 validation cases" in out

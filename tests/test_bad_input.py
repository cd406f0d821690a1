"""Mistakes in flags, descriptions and folders are reported in one line with exit status 2, before any training."""

import json
import resource

import pytest
import torch
from conftest import TRAINED, assert_one_line, train_arguments

from engine.training.log import TensorBoardLog

BAD_FLAGS = {
    "unknown dataset": (["--dataset", "brain"], ("--dataset", "'brain'", "amos", ".json")),
    "missing description": (["--dataset", "nowhere.json"], ("--dataset", "nowhere.json")),
    "unknown network": (["--network", "REP4D"], ("--network", "REP4D", "REP3D")),
    "unknown optimiser": (["--optim", "Adamw"], ("--optim", "Adamw", "AdamW")),
    "unwritable output": (["--output", "/dev/null/run"], ("--output", "/dev/null/run")),
    "crop not divisible": (["--roi_size", "30", "32", "32"], ("roi_size", "30 x 32 x 32", "divisible by 16")),
    "crop too small": (["--roi_size", "16", "16", "16"], ("roi_size", "16 x 16 x 16", "32 or more")),
    "even kernel": (["--kernel_size", "20"], ("--kernel_size", "'20'", "odd")),
    "no iterations": (["--max_iter", "0"], ("--max_iter", "'0'", "from 1")),
    "no number": (["--lr", "fast"], ("--lr", "'fast'")),
    "cache rate": (["--cache_rate", "2"], ("--cache_rate", "'2'", "from 0 to 1")),
    "overlap": (["--overlap", "1"], ("--overlap", "'1'", "below 1")),
    "device": (["--gpu", "first"], ("--gpu", "'first'", "cpu")),
    "no boolean": (["--pretrain", "yes"], ("--pretrain", "'yes'", "True or False")),
    "pretrain without weights": (["--pretrain", "True"], ("--pretrain", "--pretrained_weights")),
    "weights not there": (
        ["--pretrain", "True", "--pretrained_weights", "none.pth"],
        ("--pretrained_weights", "none.pth"),
    ),
    "more hours than a timer takes": (["--max_hours", "1e9"], ("--max_hours", "8760")),
    "no time": (["--max_hours", "0"], ("--max_hours", "above 0")),
    "huge seed": (["--seed", "18446744073709551616"], ("--seed", "from 0")),
    "nothing to resume": (["--resume"], ("--resume", "last_checkpoint.pth")),
    "unknown flag": (["--learning_rate", "1"], ("--learning_rate",)),
}


@pytest.mark.parametrize(("flags", "parts"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flag(boxes, tmp_path, train, flags, parts):
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *flags)), *parts)


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "loop/x"])
def test_a_path_that_no_file_can_have(boxes, tmp_path, trained, train, predict, monkeypatch, path):
    monkeypatch.chdir(boxes)
    (boxes / "loop").symlink_to("loop")
    pretrain = ("--pretrain", "True", "--pretrained_weights", path)
    for words in (pretrain, ("--root", path), ("--output", path), ("--dataset", f"{path}.json"), ("--cache_dir", path)):
        arguments = train_arguments(boxes, tmp_path / "new", "--max_iter", "1", *words)
        assert_one_line(train(*arguments), "NUL" if "\0" in path else f"{words[-2]}: ")
    weights = ("--trained_weights", trained / "best_metric_model.pth", "--gpu", "cpu", "--num_workers", "0")
    base = ("--root", boxes, "--output", tmp_path / "predictions", *weights)
    for flag in ("--output", "--images", "--labels", "--trained_weights", "--dataset"):
        words = (flag, f"{path}.json" if flag == "--dataset" else path)
        assert_one_line(predict(*base, *words))


BAD_DESCRIPTIONS = {
    "not an object": ([1, 2], "expected an object with the fields"),
    "missing field": ({"spacing": None}, "spacing"),
    "unknown field": ({"spacings": [1, 1, 1]}, 'found the field "spacings", expected only'),
    "no background": ({"labels": {"spleen": 1, "liver": 2}}, "labels"),
    "labels as list": ({"labels": ["background", "liver"]}, "labels"),
    "one class": ({"labels": {"background": 0}}, "labels"),
    "too many classes": ({"labels": {str(value): value for value in range(257)}}, "labels"),
    "boolean label": ({"labels": {"background": False, "liver": True}}, "labels"),
    "two spacings": ({"spacing": [1.0, 1.0]}, "spacing"),
    "negative spacing": ({"spacing": [1.0, -1.0, 1.0]}, "spacing"),
    "huge spacing": ({"spacing": [1, 1, 10**400]}, "spacing"),
    "spacing as text": ({"spacing": "1 1 1"}, "spacing"),
    "no intensity": ({"intensity": {}}, "intensity"),
    "zscore false": ({"intensity": {"zscore": False}}, "intensity"),
    "both intensities": ({"intensity": {"zscore": True, "window": [0, 1]}}, "intensity"),
    "window upside down": ({"intensity": {"window": [275, -125]}}, "intensity"),
    "same channel twice": ({"channels": ["T1", "T1"]}, "channels"),
    "no channels": ({"channels": []}, "channels"),
    "empty name": ({"name": ""}, "name"),
}


@pytest.mark.parametrize(("change", "part"), BAD_DESCRIPTIONS.values(), ids=BAD_DESCRIPTIONS)
def test_bad_description(boxes, tmp_path, train, change, part):
    path = boxes / "boxes.json"
    values = json.loads(path.read_text()) | change if isinstance(change, dict) else change
    path.write_text(json.dumps(values))
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out")), "boxes.json", part)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_description_that_is_not_json(boxes, tmp_path, train, content):
    (boxes / "boxes.json").write_bytes(content)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out")), "boxes.json", "JSON")


def test_a_finished_run_is_not_overwritten(boxes, tmp_path, trained, train):
    before = (trained / "last_checkpoint.pth").read_bytes()
    assert_one_line(train(*train_arguments(boxes, trained)), "--output", "holds a run", "--resume")
    assert (trained / "last_checkpoint.pth").read_bytes() == before


@pytest.mark.parametrize(
    "flags", [("--lr", "0.5"), ("--kernel_size", "7"), ("--roi_size", "32", "32", "32"), ("--seed", "3")]
)
def test_resume_with_another_recipe(boxes, trained, train, flags):
    arguments = train_arguments(boxes, trained, *TRAINED, *flags, "--resume")
    assert_one_line(train(*arguments), flags[0], "the run to resume")


def test_resume_with_other_cases(boxes, trained, train):
    for folder in ("imagesTr", "labelsTr"):
        (boxes / folder / "box_2.nii.gz").unlink()
    arguments = train_arguments(boxes, trained, *TRAINED, "--resume")
    assert_one_line(train(*arguments), "--root", "training cases")


def test_every_flag_that_differs_at_a_resume_is_named(boxes, trained, train):
    status, _, err = train(*train_arguments(boxes, trained, *TRAINED, "--lr", "1", "--seed", "3", "--resume"))
    assert status == 2
    assert err.splitlines()[-2:] == [
        "error: --lr: found 1.0, expected 0.01 as in the run to resume",
        "error: --seed: found 3, expected 0 as in the run to resume; a new run, in another --output, starts from its "
        f"weights with --pretrain True --pretrained_weights {trained / 'last_checkpoint.pth'}",
    ]


def test_resume_with_another_description_names_what_differs(boxes, trained, train):
    description = json.loads((boxes / "boxes.json").read_text()) | {"spacing": [2, 2, 2]}
    (boxes / "boxes.json").write_text(json.dumps(description))
    result = train(*train_arguments(boxes, trained, *TRAINED, "--resume"))
    assert_one_line(result, "--dataset: found boxes with another spacing, expected that of the run to resume")


def test_resume_in_another_precision(boxes, trained, train):
    arguments = train_arguments(boxes, trained, *TRAINED, "--amp", "fp16", "--resume")
    assert_one_line(train(*arguments), "--amp: found fp16, expected off as in the run to resume")


@pytest.mark.parametrize(
    "flags",
    [
        ("--kernel_size", "99999"),
        ("--feat_size", "4", "4", "4", "10000000000000"),
        ("--network_args", "hidden_size=1000000000000000000"),
    ],
)
def test_a_network_that_does_not_fit_in_memory(boxes, tmp_path, train, flags):
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *flags)), "--network REP3D", "fit in memory")


def test_a_disk_that_fills_up_while_training_leaves_the_last_checkpoint(boxes, tmp_path, train, monkeypatch):
    last = tmp_path / "run" / "last_checkpoint.pth"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    flush, flushed = TensorBoardLog.flush, []

    def flush_before_the_disk_is_full(log):
        flush(log)
        flushed.append(log)
        if len(flushed) == 4:  # each of the two evaluations has a checkpoint before and after it
            resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size // 2, hard))

    monkeypatch.setattr(TensorBoardLog, "flush", flush_before_the_disk_is_full)
    try:
        status, _, err = train(*train_arguments(boxes, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: {last}: cannot be written")
    assert torch.load(last, weights_only=True)["progress"]["awaits_evaluation"]  # saved before the evaluation
    assert not list(last.parent.glob(".*"))


def test_flags_that_exclude_each_other(boxes, tmp_path, train):
    both = ("--cache_dir", tmp_path / "cache", "--cache_rate", "0.5")
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *both)), "--cache_rate", "expected one of them")
    plain = ("--network", "UNet3D", "--checkpointing")
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *plain)), "--network")


def test_a_cache_folder_that_is_a_file(boxes, tmp_path, train):
    arguments = train_arguments(boxes, tmp_path / "out", "--cache_dir", boxes / "boxes.json")
    assert_one_line(train(*arguments), "--cache_dir", boxes / "boxes.json", "expected a folder")


def test_prediction_without_images(boxes, tmp_path, trained, predict):
    common = ("--output", tmp_path / "out", "--trained_weights", trained / "best_metric_model.pth", "--gpu", "cpu")
    assert_one_line(predict(*common), "--root", "--images")
    assert_one_line(predict(*common, "--images", tmp_path / "nowhere"), "nowhere", "not found")

"""Invalid, malicious or unsuitable checkpoints are reported in one line with exit status 2; their code never runs."""

import os
import pickle
import sys
import zipfile

import pytest
import torch
from conftest import assert_one_line, train_arguments
from safetensors.torch import save_file


class Malicious:
    def __reduce__(self):
        return (os.mkdir, (os.environ["MADE_BY_A_PICKLE"],))


def write_malicious(path):
    path.write_bytes(pickle.dumps({"model": Malicious()}))


def write_malicious_archive(path):
    torch.save({"model": Malicious()}, path)


def write_half(path):
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


def write_other_archive(path):
    """Write an intact archive without the pickle of a checkpoint, as those of torch.export are."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("amos/models/model.json", "{}")


def make_folder_of_save_pretrained(path):
    path.mkdir()
    (path / "model.safetensors").touch()


BAD_CHECKPOINTS = {
    "pickle": (write_malicious, "never run"),
    "archive with code": (write_malicious_archive, "never run"),
    "damaged": (write_half, "expected"),
    "empty file": (lambda path: path.write_bytes(b""), "expected"),
    "other archive": (write_other_archive, "is no plain checkpoint"),
    "text": (lambda path: path.write_text("weights"), "expected"),
    "no weights": (lambda path: torch.save({"iteration": 3}, path), "holds no weights"),
    "a list": (lambda path: torch.save([torch.zeros(3)], path), "expected a dictionary"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
    "a folder with weights": (make_folder_of_save_pretrained, "weights.pth/model.safetensors"),
    "other network": (lambda path: torch.save({"a": torch.zeros(3)}, path), "0 of them known"),
}


@pytest.mark.parametrize(("write", "part"), BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS)
def test_bad_checkpoint(boxes, tmp_path, train, predict, monkeypatch, write, part):
    monkeypatch.setenv("MADE_BY_A_PICKLE", str(tmp_path / "made"))
    path = tmp_path / "weights.pth"
    write(path)
    arguments = ("--root", boxes, "--output", tmp_path / "out", "--gpu", "cpu", "--dataset", boxes / "boxes.json")
    assert_one_line(predict(*arguments, "--trained_weights", path), "--trained_weights", path, part)
    pretrain = ("--pretrain", "True", "--pretrained_weights", path)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *pretrain)), "--pretrained_weights", path, part)
    last = tmp_path / "run" / "last_checkpoint.pth"
    last.parent.mkdir()
    write(last)
    arguments = train_arguments(boxes, last.parent, "--resume")
    assert_one_line(train(*arguments), "--resume", last)
    assert not (tmp_path / "made").exists()


def write_forged(path):
    """Write a file whose description is not that of its digest."""
    save_file({"weight": torch.zeros(3)}, path, {"rep3d": '{"config": {}, "digest": "00"}'})


def write_huge_header(path):
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")


def write_half_of_safetensors(path):
    save_file({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


BAD_SAFETENSORS = {
    "empty file": (lambda path: path.write_bytes(b""), "is damaged, expected a whole checkpoint"),
    "a checkpoint": (lambda path: torch.save({"model": {"a": torch.zeros(3)}}, path), "is damaged"),
    "half": (write_half_of_safetensors, "is damaged"),
    "huge header": (write_huge_header, "is damaged"),
    "forged": (write_forged, "is damaged"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
    "missing": (lambda path: None, "cannot be read (No such file or directory)"),
    "no weights": (lambda path: save_file({}, path), "holds no weights"),
    "other network": (lambda path: save_file({"a": torch.zeros(3)}, path), "0 of them known"),
}


@pytest.mark.parametrize(("write", "part"), BAD_SAFETENSORS.values(), ids=BAD_SAFETENSORS)
def test_bad_safetensors(boxes, tmp_path, train, predict, write, part):
    path = tmp_path / "weights.safetensors"
    write(path)
    arguments = ("--root", boxes, "--output", tmp_path / "out", "--gpu", "cpu", "--dataset", boxes / "boxes.json")
    assert_one_line(predict(*arguments, "--trained_weights", path), "--trained_weights", path, part)
    pretrain = ("--pretrain", "True", "--pretrained_weights", path)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *pretrain)), "--pretrained_weights", path, part)


def test_a_missing_package_is_named(boxes, tmp_path, predict, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    save_file({"a": torch.zeros(3)}, tmp_path / "weights.safetensors")
    arguments = ("--root", boxes, "--output", tmp_path / "out", "--gpu", "cpu")
    found = predict(*arguments, "--trained_weights", tmp_path / "weights.safetensors")
    assert_one_line(found, "--trained_weights", "found no package safetensors", "pip install safetensors")


BAD_CONFIGS = [
    ("network", ["REP3D"]),
    ("network", "REP4D"),
    ("in_chans", "1"),
    ("out_chans", 3.0),
    ("roi_size", ["a", "b", "c"]),
    ("overrides", {"feat_size": "abcd"}),
    ("overrides", {"feat_size": None}),
    ("overrides", {"kernel_size": "5"}),
    ("overrides", {"deploy": True}),
    ("overrides", {"norm_name": "group"}),
    ("overrides", {"dropout": 1}),
]


@pytest.mark.parametrize(("key", "value"), BAD_CONFIGS)
def test_a_checkpoint_that_describes_no_network(boxes, tmp_path, trained, predict, key, value):
    content = torch.load(trained / "best_metric_model.pth", weights_only=True)
    content["config"][key] = value
    path = tmp_path / "strange.pth"
    torch.save(content, path)
    common = ("--root", boxes, "--output", tmp_path / "out", "--gpu", "cpu")
    assert_one_line(predict(*common, "--trained_weights", path), "--trained_weights", path)


def test_prediction_refuses_what_the_checkpoint_contradicts(boxes, tmp_path, trained, predict):
    weights = ("--trained_weights", trained / "best_metric_model.pth", "--gpu", "cpu")
    common = ("--root", boxes, "--output", tmp_path / "out", *weights)
    assert_one_line(predict(*common, "--dataset", "amos"), "--dataset", "16 classes", "3")
    assert_one_line(predict(*common, "--network", "REP3D_FIXED"), "does not fit the network")
    assert_one_line(predict(*common, "--kernel_size", "7"), "does not fit the network", "5, 5, 5")
    assert_one_line(predict(*common, "--feat_size", "4", "4", "8", "8"), "does not fit the network")
    assert_one_line(predict(*common, "--roi_size", "20", "32", "32"), "roi_size", "20 x 32 x 32")
    assert_one_line(predict("--root", boxes, "--output", "/dev/null/out", *weights), "--output", "/dev/null/out")


def test_prediction_refuses_weights_of_nnunet(boxes, tmp_path, trained, predict):
    """Their names may fit, but axes, spacing and intensities of what they were trained on differ."""
    path = tmp_path / "checkpoint_final.pth"
    weights = torch.load(trained / "best_metric_model.pth", weights_only=True)["model"]
    torch.save({"network_weights": weights, "trainer_name": "nnUNetTrainerRep3D"}, path)
    arguments = ("--root", boxes, "--output", tmp_path / "out", "--gpu", "cpu", "--dataset", boxes / "boxes.json")
    assert_one_line(predict(*arguments, "--trained_weights", path), f"--trained_weights: {path} is of nnU-Net")
    assert not (tmp_path / "out").exists()


def test_class_count_of_a_state_dict(boxes, tmp_path, trained, predict):
    path = tmp_path / "bare.pth"
    torch.save(torch.load(trained / "best_metric_model.pth", weights_only=True)["model"], path)
    common = ("--root", boxes, "--output", tmp_path / "out", "--trained_weights", path, "--gpu", "cpu")
    assert_one_line(predict(*common), "--dataset", "bare state dict")
    flags = ("--feat_size", "8", "8", "8", "8", "--kernel_size", "5")
    assert_one_line(predict(*common, "--dataset", "amos", *flags), "--trained_weights", "out.conv.conv.weight", "class")

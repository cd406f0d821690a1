"""The command that makes a folder for colleagues from what nnU-Net trained."""

import errno
import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_one_line
from nnunet_plans import DATASET, OURS, PATCH, make_configuration, make_plans


@pytest.fixture(scope="module")
def command(rep3d):
    return importlib.import_module("rep3d.nnunet.deploy")


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """Folder of a model with two folds, as nnU-Net leaves it."""
    folder = tmp_path_factory.mktemp("model")
    fullres, flat = make_configuration(PATCH, architecture=OURS), make_configuration([56, 40])
    plans = make_plans(**{"3d_fullres": fullres, "2d": flat})
    for name, content in (("plans", plans), ("dataset", DATASET)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    for number in (0, 3):
        torch.manual_seed(number)
        content = {
            "network_weights": command.NetworkFromPlans(1, 3, **OURS["arch_kwargs"]).state_dict(),
            "optimizer_state": {},
            "init_args": {"configuration": "3d_fullres", "fold": number, "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainerRep3D",
            "_best_ema": np.float32(0.5),
            "logging": {"lrs": [np.float64(1e-4)]},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        (folder / f"fold_{number}").mkdir()
        torch.save(content, folder / f"fold_{number}" / "checkpoint_final.pth")
    return folder


@pytest.fixture
def model(trained, tmp_path):
    """Copy of the model, which a test may damage."""
    return shutil.copytree(trained, tmp_path / "model")


@pytest.fixture
def deploy(command, capsys, model, tmp_path):
    """Run the command on ``model``; returns (exit status, stdout, stderr)."""

    def run(*words):
        status = 0
        flags = ["--model", str(model), "--output", str(tmp_path / "out" / "deployed"), *map(str, words)]
        try:
            command.run(command.main, command.parse_args(flags))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def test_the_folder_predicts_as_the_model_does_without_masks_and_trainer(deploy, command, model, tmp_path):
    status, out, _ = deploy()
    assert status == 0
    assert "-f 0 3" in out
    folder = tmp_path / "out" / "deployed"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "fold_3/checkpoint_final.pth"}
    plans = json.loads((folder / "plans.json").read_text())
    assert list(plans["configurations"]) == ["3d_fullres"]
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    image = torch.randn(1, 1, *PATCH)
    for number in (0, 3):
        content = torch.load(folder / f"fold_{number}" / "checkpoint_final.pth", weights_only=True)
        before = torch.load(model / f"fold_{number}" / "checkpoint_final.pth", weights_only=False)
        assert content["trainer_name"] == "nnUNetTrainerNoDeepSupervision"
        assert content["init_args"] == {"configuration": "3d_fullres"}
        assert content["inference_allowed_mirroring_axes"] == (0, 1, 2)
        assert not any("lrbm" in name for name in content["network_weights"])
        deployed = command.NetworkFromPlans(1, 3, **arguments).eval()
        deployed.load_state_dict(content["network_weights"])
        network = command.NetworkFromPlans(1, 3, **{**arguments, "deploy": False}).eval()
        network.load_state_dict(before["network_weights"])
        torch.testing.assert_close(deployed(image), network(image))


def test_a_fold_without_the_checkpoint_is_named(deploy, model):
    (model / "fold_0" / "checkpoint_final.pth").rename(model / "fold_0" / "checkpoint_latest.pth")
    status, out, _ = deploy()
    assert status == 0
    assert "left out fold_0, which has no checkpoint_final.pth" in out
    assert "-f 3" in out


def test_another_checkpoint(deploy, model, tmp_path):
    for number in (0, 3):
        (model / f"fold_{number}" / "checkpoint_final.pth").rename(model / f"fold_{number}" / "checkpoint_best.pth")
    assert_one_line(deploy(), "--model", "fold_*/checkpoint_final.pth")
    assert deploy("--checkpoint", "checkpoint_best.pth")[0] == 0
    assert (tmp_path / "out" / "deployed" / "fold_3" / "checkpoint_final.pth").exists()


@pytest.mark.parametrize("name", ["", "fold_0/checkpoint_best.pth", "/models/fold_0/checkpoint_best.pth"])
def test_a_path_as_checkpoint_is_refused(deploy, name):
    assert_one_line(deploy("--checkpoint", name), "--checkpoint", repr(name))


def test_an_existing_output_is_kept(deploy, tmp_path):
    (tmp_path / "out" / "deployed").mkdir(parents=True)
    assert_one_line(deploy(), "--output", tmp_path / "out" / "deployed")


def save(path, **changes):
    torch.save({**torch.load(path, weights_only=False), **changes}, path)


def clear_a_weight(path):
    """Set bytes of a weight to 0 in the file, which PyTorch would read without complaint."""
    weight = next(iter(torch.load(path, weights_only=False)["network_weights"].values()))
    content = path.read_bytes()
    known = weight.numpy().tobytes()[:64]
    assert content.count(known) == 1
    path.write_bytes(content.replace(known, bytes(len(known))))


def remove_patch(model):
    plans = json.loads((model / "plans.json").read_text())
    del plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["patch_size"]
    (model / "plans.json").write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda model: (model / "plans.json").unlink(), ("plans.json", "No such file")),
        (lambda model: (model / "dataset.json").write_text("{"), ("dataset.json", "JSON")),
        (lambda model: (model / "plans.json").write_text("{}"), ("3d_fullres", "NetworkFromPlans")),
        (remove_patch, ("fold_0", "plans.json")),
        (lambda model: (model / "dataset.json").write_text("{}"), ("dataset.json", "labels")),
        (lambda model: (model / "dataset.json").write_text(json.dumps({**DATASET, "labels": 3})), ("dataset.json",)),
        (lambda model: (model / "fold_3/checkpoint_final.pth").write_bytes(b"0"), ("fold_3", "damaged")),
        (lambda model: clear_a_weight(model / "fold_3/checkpoint_final.pth"), ("fold_3", "damaged")),
        (lambda model: torch.save({"a": 1}, model / "fold_3/checkpoint_final.pth"), ("fold_3", "nnU-Net")),
        (lambda model: torch.save(torch.ones(3), model / "fold_3/checkpoint_final.pth"), ("fold_3", "nnU-Net")),
        (lambda model: save(model / "fold_3/checkpoint_final.pth", init_args={}), ("fold_3", "nnU-Net")),
        (lambda model: save(model / "fold_3/checkpoint_final.pth", logging=json.loads), ("fold_3", "pickled code")),
        (lambda model: save(model / "fold_3/checkpoint_final.pth", network_weights={}), ("fold_3", "plans.json")),
        (lambda model: save(model / "fold_3/checkpoint_final.pth", network_weights=[]), ("fold_3", "plans.json")),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(deploy, model, tmp_path, damage, parts):
    damage(model)
    assert_one_line(deploy(), *parts)
    assert not list((tmp_path / "out").glob("*"))


def test_a_missing_nnunet_is_one_line(deploy, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnunetv2.utilities.label_handling.label_handling", None)
    assert_one_line(deploy(), "nnunetv2", "pip install nnunetv2")


def test_a_full_disk_is_one_line_and_leaves_nothing(deploy, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    output = tmp_path / "out" / "deployed"
    assert_one_line(deploy(), f"--output: {output} cannot be written (No space left on device)")
    assert not list((tmp_path / "out").glob("*"))


def test_an_output_in_a_file_is_one_line(deploy, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert_one_line(deploy(), f"--output: {tmp_path / 'out' / 'deployed'} cannot be written (Not a directory)")


def test_what_a_killed_run_left_is_replaced(deploy, tmp_path):
    left = tmp_path / "out" / ".deployed.part"
    (left / "fold_0").mkdir(parents=True)
    (left / "fold_9").mkdir()
    assert deploy()[0] == 0
    assert not left.exists()
    assert not (tmp_path / "out" / "deployed" / "fold_9").exists()

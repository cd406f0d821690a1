"""Exports of bundles that are refused or fail leave nothing; what the flags are for."""

import json
import subprocess

import nibabel as nib
import numpy as np
import pytest
import torch
from bundles import DESCRIPTION, ROI, export, write_weights
from conftest import assert_one_line, write_nifti

from engine.data.datasets import DatasetDescription
from engine.weights.checkpoints import NetworkConfig
from engine.weights.load_network import load_trained
from integrations.monai_bundle import self_test
from integrations.monai_bundle.configs import check_texts
from networks.pretrained import save_pretrained


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("run"))


def test_an_existing_folder_is_kept(weights, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    result = export(capsys, "--weights", weights, "--output", tmp_path / "mine")
    assert_one_line(result, f"--output: {tmp_path / 'mine'} exists, expected a new name")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_weights_without_a_description_are_refused(weights, tmp_path, capsys):
    path = tmp_path / "bare.pth"
    torch.save(torch.load(weights, weights_only=True)["model"], path)
    result = export(capsys, "--weights", path, "--output", tmp_path / "out")
    assert_one_line(result, "--weights:", "bare state dict, expected a checkpoint of main_train.py")
    torch.save({"weights": torch.nn.Linear(1, 1)}, path)
    assert_one_line(export(capsys, "--weights", path, "--output", tmp_path / "out"), "is no plain checkpoint")
    missing = export(capsys, "--weights", tmp_path / "none.pth", "--output", tmp_path / "out")
    assert_one_line(missing, "none.pth cannot be read")
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_monai_evaluates_are_refused(weights, tmp_path, capsys):
    content = torch.load(weights, weights_only=True)
    content["description"]["name"] = "$print(1)"
    path = tmp_path / "foreign.pth"
    torch.save(content, path)
    result = export(capsys, "--weights", path, "--output", tmp_path / "out")
    assert_one_line(result, f"--weights: {path}", "found '$print(1)' in the description", "which MONAI evaluates")
    assert list(tmp_path.iterdir()) == [path]


def test_arguments_that_monai_evaluates_are_refused():
    description = DatasetDescription.from_json(DESCRIPTION, "odd.json")
    config = NetworkConfig.for_dataset(description, "REP3D", ROI, {"feat_size": ("$print(1)", 8)})
    with pytest.raises(ValueError, match=r"weights: found '\$print\(1\)' in the arguments of its network"):
        check_texts(config, description, "weights")


def test_safetensors_are_exported_too(weights, tmp_path, capsys, monkeypatch):
    trained = load_trained(weights, "--weights", deploy=True)
    save_pretrained(trained.network, tmp_path / "model", description=DESCRIPTION)
    monkeypatch.setattr(self_test, "run_bundle", predict_nothing)
    monkeypatch.setattr(self_test, "compare", lambda *_: self_test.Comparison(9, 0, 0, 0, 1))
    path = tmp_path / "model" / "model.safetensors"
    status, out, err = export(capsys, "--weights", path, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "folded" not in out
    copied = torch.load(tmp_path / "out" / "models" / "model.pt", weights_only=True)
    expected = trained.network.state_dict()
    assert copied.keys() == expected.keys()
    assert all(torch.equal(copied[name], expected[name]) for name in copied)


def test_a_missing_package_is_named(weights, tmp_path, capsys, monkeypatch):
    find = self_test.importlib.util.find_spec
    monkeypatch.setattr(self_test.importlib.util, "find_spec", lambda name: None if name == "ignite" else find(name))
    result = export(capsys, "--weights", weights, "--output", tmp_path / "out")
    assert_one_line(result, "the package pytorch-ignite is not installed", "pip install pytorch-ignite")
    assert list(tmp_path.iterdir()) == []


def test_the_licence_of_the_data_is_copied_or_its_file_is_named(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(self_test, "run_bundle", predict_nothing)
    monkeypatch.setattr(self_test, "compare", lambda *_: self_test.Comparison(9, 0, 0, 0, 1))
    missing = export(capsys, "--weights", weights, "--output", tmp_path / "out", "--data_license", tmp_path / "none")
    assert_one_line(missing, f"--data_license: {tmp_path / 'none'} cannot be read (No such file or directory), exp")
    binary = export(capsys, "--weights", weights, "--output", tmp_path / "out", "--data_license", weights)
    assert_one_line(binary, f"--data_license: {weights} is no text in UTF-8")
    (tmp_path / "license").write_text("CC BY 4.0\n")
    words = ["--weights", weights, "--output", tmp_path / "detection_1", "--data_license", tmp_path / "license"]
    status, out, _ = export(capsys, *words, "--authors", "A. Author")
    assert status == 0
    assert "MONAI Label takes a bundle named detection_1 for one of another task" in out
    assert (tmp_path / "detection_1" / "docs" / "data_license.txt").read_text() == "CC BY 4.0\n"
    metadata = json.loads((tmp_path / "detection_1" / "configs" / "metadata.json").read_text())
    assert (metadata["name"], metadata["authors"]) == ("detection_1", "A. Author")


def predict_nothing(bundle, images, output):
    """Write a label map of nothing but background, as a bundle that does not work might."""
    image = nib.load(next(images.glob("*.nii.gz")))
    write_nifti(output / f"{self_test.NAME}_seg.nii.gz", np.zeros(image.shape, np.uint8), image.affine)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (predict_nothing, "the bundle failed its test: "),
        (lambda *_: None, "the bundle has written no label map in its test"),
    ],
)
def test_a_bundle_that_fails_its_test_is_not_left(weights, tmp_path, capsys, monkeypatch, fault, message):
    monkeypatch.setattr(self_test, "run_bundle", fault)
    assert_one_line(export(capsys, "--weights", weights, "--output", tmp_path / "out"), message)
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_bundle_that_does_not_run_is_shown(tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "Traceback ...\nModuleNotFoundError: No module named 'x'\n")
    monkeypatch.setattr(self_test.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ValueError, match="does not run in its test: ModuleNotFoundError: No module named 'x'"):
        self_test.run_bundle(tmp_path, tmp_path, tmp_path)

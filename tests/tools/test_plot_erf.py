"""Plot of effective receptive fields."""

import csv

import numpy as np
import pytest
import torch
from conftest import assert_one_line

from engine.data.datasets import DatasetDescription
from engine.runtime.errors import run
from engine.weights.checkpoints import NetworkConfig, load_checkpoint
from engine.weights.load_network import load_trained
from tools import plot_erf

SIZE = "32 x 32 x 16"


@pytest.fixture
def plot(box_template, tmp_path, capsys):
    """Run the tool on the boxes; returns (exit status, stdout, stderr)."""

    def run_tool(*words):
        capsys.readouterr()
        arguments = ["--root", box_template, "--output", tmp_path / "out", "--gpu", "cpu", *words]
        status = run(plot_erf.main, plot_erf.parse_args([str(word) for word in arguments]))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_tool


@pytest.fixture
def unet(box_template, tmp_path):
    """Checkpoint of an untrained network without a large-kernel encoder."""
    torch.manual_seed(0)  # with some weights all logits of the central voxel are negative
    description = DatasetDescription.read(box_template / "boxes.json")
    config = NetworkConfig.for_dataset(description, "UNet3D", (32, 32, 16), {"channels": [4, 4, 4, 4, 8]})
    content = {"config": config.to_plain(), "description": description.to_json(), "model": config.build().state_dict()}
    torch.save(content, tmp_path / "unet.pth")
    return tmp_path / "unet.pth"


def test_picture_and_tables_of_two_checkpoints(plot, trained, tmp_path):
    weights = [trained / "best_metric_model.pth", trained / "last_checkpoint.pth"]
    status, out, _ = plot("--weights", *weights)
    assert status == 0
    assert (tmp_path / "out" / "erf.png").stat().st_size > 10_000
    with open(tmp_path / "out" / "erf.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["checkpoint", "threshold", "share", "side", "images"]
    assert [(row["checkpoint"], row["threshold"]) for row in rows] == [
        (str(path), threshold) for path in weights for threshold in ("0.2", "0.3", "0.5", "0.99")
    ]
    assert {row["images"] for row in rows} == {"2"}  # 50 were asked for
    shares = [float(row["share"]) for row in rows[:4]]
    assert 0 < shares[0] <= shares[1] <= shares[2] <= shares[3] <= 1
    head, *body = out.splitlines()
    assert head.split() == ["checkpoint", "images", "crop", "20%", "30%", "50%", "99%"]
    assert [line.split()[:7] for line in body] == [[str(path), "2", *SIZE.split()] for path in weights]
    assert f"{shares[2]:.1%} ({rows[2]['side']})" in body[0]


def test_crops_are_central_and_padded_with_the_minimum(box_template):
    description = DatasetDescription.read(box_template / "boxes.json")
    (whole,) = plot_erf.load_crops(box_template, 1, description, (36, 28, 18))
    (crop,) = plot_erf.load_crops(box_template, 1, description, (32, 32, 16))
    assert torch.equal(crop[:, :, :, 2:30], whole[:, :, 2:34, :, 1:17])
    assert (crop[:, :, :, [0, 1, 30, 31]] == whole.min()).all()


def test_logits_of_any_network(plot, unet):
    status, out, _ = plot("--weights", unet, "--of", "logits", "--images", 1)
    assert status == 0
    assert out.splitlines()[1].split()[:2] == [str(unet), "1"]


def test_network_without_an_encoder_of_large_kernels(plot, unet):
    assert_one_line(plot("--weights", unet), "--of: found encoder with UNet3D in", unet, "expected logits")


def test_features_that_are_all_negative(plot, unet):
    content = load_checkpoint(unet, "")
    for name, value in content["model"].items():
        value.fill_(-1.0 if name.endswith("bias") else 0.0)
    torch.save(content, unet)
    assert_one_line(plot("--weights", unet, "--of", "logits"), f"--weights: {unet}: contributions: found a sum of 0.0")


def test_files_that_are_no_checkpoints(plot, trained, tmp_path):
    best = trained / "best_metric_model.pth"
    assert_one_line(plot("--weights", best, "nowhere.pth"), "--weights: nowhere.pth cannot be read")
    torch.save(load_checkpoint(best, "")["model"], tmp_path / "bare.pth")
    assert_one_line(plot("--weights", tmp_path / "bare.pth"), "bare.pth is a bare state dict, expected a checkpoint")


def test_datasets_without_validation_images(plot, trained, boxes, tmp_path):
    weights = ("--weights", trained / "best_metric_model.pth")
    assert_one_line(plot(*weights, "--root", "nowhere"), "nowhere/imagesVal: not found, expected a folder")
    for path in (boxes / "imagesVal").iterdir():
        path.write_bytes(b"no volume")
        break
    assert_one_line(plot(*weights, "--root", boxes), path)
    for path in (boxes / "imagesVal").iterdir():
        path.unlink()
    assert_one_line(plot(*weights, "--root", boxes), "imagesVal: found no volume")


def test_the_field_is_that_of_the_deployed_network_in_evaluation_mode(trained):
    network, config, *_ = load_trained(trained / "best_metric_model.pth", "--weights", deploy=True)
    network.eval()
    features, strides = plot_erf.choose_features(network, "encoder", "")
    image = torch.randn(1, 1, *config.roi_size)
    assert strides == (16, 16, 16)
    assert features(image).shape == (1, 8, 2, 2, 1)
    assert torch.equal(features(image), network.encoder(image)[3])
    assert not any(".lrbm." in name for name in network.state_dict())
    assert np.isfinite(plot_erf.measure_field(features, [image], strides).contributions).all()

"""Plot of masks and kernels, and of their movement since the start."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import assert_one_line, train_arguments

import main_train
from engine.data.datasets import DatasetDescription
from engine.evaluation.masks import find_blocks
from engine.runtime.errors import InputError, run
from engine.runtime.stop_requests import StopRequests
from engine.weights.checkpoints import NetworkConfig, load_checkpoint
from engine.weights.load_network import load_trained, name_checkpoints
from networks.Rep3D.rep3d_encoder import rep3d_block
from tools import plot_masks


@pytest.fixture
def plot(tmp_path, capsys):
    """Run the tool; returns (exit status, stdout, stderr)."""

    def run_tool(*words):
        capsys.readouterr()
        arguments = [str(word) for word in ("--output", tmp_path / "out", "--weights", *words)]
        status = run(plot_masks.main, plot_masks.parse_args(arguments))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_tool


@pytest.fixture
def save(box_template, tmp_path):
    """Save a checkpoint of an untrained network, with further entries."""

    def save_network(network, deploy=False, depths=(1, 1, 1, 1), **more):
        description = DatasetDescription.read(box_template / "boxes.json")
        small = {"feat_size": [4, 4, 4, 4], "depths": list(depths), "kernel_size": 5}
        overrides = small if network.startswith("REP3D") else {}
        config = NetworkConfig.for_dataset(description, network, (32, 32, 16), overrides)
        weights = config.build(deploy).state_dict()
        described = {"config": config.to_plain(), "description": description.to_json()}
        torch.save({"model": weights, **described, **more}, tmp_path / "network.pth")
        return tmp_path / "network.pth"

    return save_network


def read_columns(path):
    """Read profiles.csv by column; empty cells are NaN."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {
        key: np.array([float(row[key] or math.nan) for row in rows])
        for key in rows[0]
        if key not in ("checkpoint", "block")
    }
    return [row["block"] for row in rows], numbers


def test_an_untrained_network_has_not_moved(plot, box_template, tmp_path):
    words = train_arguments(box_template, tmp_path / "run", "--seed", "7", "--network_args", "depths=1,1,1,1")
    args = main_train.parse_args([str(word) for word in words])
    state, _, _ = main_train.prepare(args, torch.device("cpu"), StopRequests())
    state.save(tmp_path / "run")
    status, out, _ = plot(tmp_path / "run" / "last_checkpoint.pth")
    assert (status, out) == (0, "")
    _, columns = read_columns(tmp_path / "out" / "profiles.csv")
    assert not columns["moved"].any()
    assert (columns["effective"] > 0).all()
    assert np.array_equal(columns["mask"], columns["prior"])


def test_a_trained_network_has_moved(plot, trained, tmp_path):
    status, out, _ = plot(trained / "best_metric_model.pth")
    assert (status, out) == (0, "")
    blocks, columns = read_columns(tmp_path / "out" / "profiles.csv")
    assert list(dict.fromkeys(blocks)) == [f"rep3d.stages.{stage}.{block}" for stage in range(4) for block in range(2)]
    assert columns["distance"][:5].tolist() == [0, 1, 2, 3, 0]  # the corners of 5^3 taps are 3.5 voxels away
    assert (columns["moved"] > 0).all()
    for name in ("masks.png", "profiles.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000


def test_profiles_of_a_known_kernel():
    block, start = (rep3d_block(2, 3, mask="fixed") for _ in range(2))
    block.dwconv.weight.data[0], block.dwconv.weight.data[1] = 2, -4
    torch.nn.init.constant_(start.dwconv.weight, 1)
    profiles = plot_masks.average_shells(plot_masks.measure_taps(block, start))
    # Shell 0 is the centre, shell 1 has six taps at 1 and twelve at sqrt(2), shell 2 eight at sqrt(3).
    prior = np.array([1, (6 / 2 + 12 / (1 + 2**0.5)) / 18, 1 / (1 + 3**0.5)])
    expected = {"prior": prior, "mask": prior, "kernel": [3, 3, 3], "effective": 3 * prior, "moved": 3 * prior}
    assert profiles.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(profiles[key], values, rtol=1e-6, err_msg=key)


def test_network_without_masks_has_kernels_only(plot, save, tmp_path):
    path = save("REP3D_NONE")
    status, out, _ = plot(path)
    reason = "found no seed in the checkpoint and no args.json beside it, expected --seed"
    assert (status, out) == (0, f"{path}: movement left out, {reason}\n")
    _, columns = read_columns(tmp_path / "out" / "profiles.csv")
    assert all(np.isnan(columns[key]).all() for key in ("prior", "mask", "moved"))
    assert (columns["kernel"] > 0).all()
    assert np.array_equal(columns["effective"], columns["kernel"])


def test_several_checkpoints_are_drawn_side_by_side(plot, save, trained, tmp_path, monkeypatch):
    learned, table = trained / "best_metric_model.pth", tmp_path / "out" / "profiles.csv"
    plain = save("REP3D_NONE", depths=[2, 2, 2, 2])
    alone = {}
    for path in (learned, plain):
        assert plot(path)[0] == 0
        alone[path] = table.read_text().splitlines()
    figures = []
    monkeypatch.setattr(plot_masks, "save_png", lambda figure, path: figures.append(figure))
    assert plot(learned, plain)[0] == 0
    assert table.read_text().splitlines() == [*alone[learned], *alone[plain][1:]]
    slices, profiles = figures
    titles = [axes.get_title().replace("\n", "") for axes in slices.axes if axes.get_title()]  # in several lines
    assert titles == [f"{trained.name}mask M", f"{trained.name}|W_eff|", f"{tmp_path.name}|W_eff|"]
    assert [text.get_text() for text in profiles.legends[0].get_texts()] == ["prior P", trained.name, tmp_path.name]
    other = save("REP3D")
    assert_one_line(plot(learned, other), f"{other} has other blocks than {learned}, expected networks of one kind")


def test_names_of_checkpoints(tmp_path, monkeypatch):
    assert name_checkpoints(["runs/a/x.pth", "runs/b/x.pth"], "--weights") == {"runs/a/x.pth": "a", "runs/b/x.pth": "b"}
    for same in (["a/x.pth", "a/y.pth"], ["a/x.pth", "b/a/x.pth"]):
        assert name_checkpoints(same, "--weights") == dict(zip(same, same, strict=True))
    monkeypatch.chdir(tmp_path)
    assert name_checkpoints(["x.pth"], "--weights") == {"x.pth": tmp_path.name}
    with pytest.raises(InputError, match=r"--weights: found a/x\.pth twice, expected different files"):
        name_checkpoints(["a/x.pth", "b/x.pth", "a/x.pth"], "--weights")


def test_where_the_seed_is_found(save, tmp_path, capsys):
    path = save("REP3D")
    network, config, _, content = load_trained(path, "--weights")
    blocks = find_blocks(network)
    assert plot_masks.read_flags(content, path) == {}
    (tmp_path / "args.json").write_text(json.dumps({"seed": 5, "pretrain": False}))
    assert plot_masks.read_flags(content, path) == {"seed": 5, "pretrain": False}
    own = {**content, "args": {"seed": 6, "pretrain": True}}
    assert plot_masks.read_flags(own, path) == {"seed": 6, "pretrain": True}

    start = plot_masks.rebuild_start(config, {"seed": 5, "pretrain": False}, None, path)
    same = plot_masks.rebuild_start(config, {}, 5, path)
    assert start.keys() == same.keys() == blocks.keys()
    assert all(torch.equal(start[name].dwconv.weight, same[name].dwconv.weight) for name in blocks)
    assert capsys.readouterr().out == ""
    assert plot_masks.rebuild_start(config, {}, None, path) == {}
    assert capsys.readouterr().out.startswith(f"{path}: movement left out, found no seed")
    assert plot_masks.rebuild_start(config, {"seed": 5, "pretrain": True}, 5, path) == {}
    assert capsys.readouterr().out == f"{path}: movement left out, the run started from other weights (--pretrain)\n"


def test_files_that_have_no_masks_to_plot(plot, save, tmp_path):
    assert_one_line(plot("nowhere.pth"), "--weights: nowhere.pth cannot be read")
    assert_one_line(plot(save("UNet3D")), "--weights: found UNet3D in", "expected a network with large-kernel blocks")
    assert_one_line(plot(save("REP3D", deploy=True)), "network.pth is deployed, its masks are folded")
    torch.save(load_checkpoint(save("REP3D"), "")["model"], tmp_path / "bare.pth")
    assert_one_line(plot(tmp_path / "bare.pth"), "bare.pth is a bare state dict, expected a checkpoint")


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": null, "pretrain": false}', "{}"])
def test_args_json_of_something_else(plot, save, tmp_path, text):
    (tmp_path / "args.json").write_text(text)
    assert_one_line(plot(save("REP3D")), "args.json lacks seed and pretrain, expected the flags of main_train.py")

"""Measurements of a finished run: masks and taps."""

import math

import numpy as np
import pytest
import torch
from conftest import train_arguments

from engine.evaluation.masks import radial_profile
from engine.weights.load_network import build_start, load_trained
from experiments.measures import measure_masks, measure_taps, overlap
from networks.Rep3D import compute_distance_prior

LAST = "last_checkpoint.pth"
BLOCK = "rep3d.stages.0.0"
FLAGS = ("--max_iter", "2", "--eval_step", "1", "--kernel_size", "5")


@pytest.fixture
def run_folder(boxes, tmp_path, train):
    """Make a function that trains two iterations with flags and returns the folder."""

    def make(*flags):
        folder = tmp_path / "run"
        status, _, err = train(*train_arguments(boxes, folder, *FLAGS, *flags))
        assert status == 0, err
        return folder

    return make


def values(rows, quantity, block=BLOCK):
    return {
        int(row["iteration"]): float(row["value"])
        for row in rows
        if (row["quantity"], row["block"]) == (quantity, block)
    }


def profile(rows, name, block=BLOCK):
    own = [row for row in rows if row["block"] == block and row["iteration"] == "2"]
    found = [row for row in own if row["quantity"].startswith(f"{name} at distance ")]
    assert [row["quantity"] for row in found] == [f"{name} at distance {distance}" for distance in range(len(found))]
    return [float(row["value"]) for row in found]


def test_masks_of_every_evaluation_and_the_final_profile(run_folder):
    folder = run_folder("--network", "REP3D")
    rows = measure_masks(folder)
    assert len({row["block"] for row in rows}) == 8
    assert list(values(rows, "correction")) == list(values(rows, "smallest")) == [1, 2]
    assert list(values(rows, "M at distance 2")) == [1, 2]
    assert list(values(rows, "M at distance 3")) == [2]
    assert len({(row["iteration"], row["block"], row["quantity"]) for row in rows}) == len(rows)
    network = load_trained(folder / LAST, "run").network
    mask, prior = network.encoder.stages[0][0].lrbm()[0, 0].detach(), compute_distance_prior(5)
    assert values(rows, "correction")[2] == pytest.approx(((mask - prior).abs() / prior).mean().item(), rel=1e-4)
    assert profile(rows, "M") == pytest.approx(radial_profile(mask.numpy()), rel=1e-4)
    assert profile(rows, "P") == pytest.approx(radial_profile(prior.numpy()), rel=1e-4)


def test_a_network_without_masks_has_no_rows(run_folder):
    assert measure_masks(run_folder("--network", "REP3D_NONE")) == []


@pytest.mark.parametrize("network", ["REP3D_NONE", "REP3D_FIXED"])
def test_gradients_are_those_of_the_effective_kernel(run_folder, network):
    folder = run_folder("--network", network)
    rows = measure_taps(folder)
    content = load_trained(folder / LAST, "run").content
    names = [
        name for name in content["model"] if "running" not in name and "batches" not in name and "prior" not in name
    ]
    moment = content["optimizer"]["state"][names.index(f"{BLOCK}.dwconv.weight")]["exp_avg_sq"] / (1 - 0.999**2)
    mask = compute_distance_prior(5) if network == "REP3D_FIXED" else torch.ones(5, 5, 5)
    expected = np.sqrt(radial_profile((moment.mean(dim=(0, 1)) / mask**2).numpy()))
    assert profile(rows, "gradient") == pytest.approx(expected, rel=1e-4)


def test_changes_are_relative_to_the_start_of_the_seed(run_folder):
    folder = run_folder("--network", "REP3D_NONE", "--seed", "3")
    network, config, *_ = load_trained(folder / LAST, "run")
    kernel = network.encoder.stages[0][0].dwconv.weight.detach()
    start = build_start(config, 3).encoder.stages[0][0].dwconv.weight.detach()
    expected = (kernel - start)[..., 2, 2, 2].norm() / start[..., 2, 2, 2].norm()
    assert profile(measure_taps(folder), "change")[0] == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 1e-3


def test_an_untrained_kernel_has_not_changed(run_folder):
    folder = run_folder("--network", "REPOPT", "--network_args", "branches=true", "--lr", "1e-30")
    assert max(profile(measure_taps(folder), "change")) == 0


def test_taps_without_data_have_no_gradient(run_folder):
    rows = measure_taps(run_folder("--network", "REP3D_NONE"))
    last = "rep3d.stages.3.1"  # the grid is 2 x 2 x 1
    assert [value > 0 for value in profile(rows, "gradient", last)] == [True, True, False, False]
    assert [value > 0 for value in profile(rows, "overlap", last)] == [True, True, False, False]


def test_overlap_counts_positions():
    shares = overlap(3, (4, 2, 1))
    assert shares[1, 1, 1] == 1
    assert shares[0, 1, 1] == shares[2, 1, 1] == 3 / 4
    assert shares[1, 0, 1] == 1 / 2
    assert shares[1, 1, 0] == 0
    assert shares[0, 2, 1] == 3 / 8
    assert math.isclose(shares.sum(), (1 + 2 * 3 / 4) * (1 + 2 / 2))

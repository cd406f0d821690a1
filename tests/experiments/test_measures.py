"""Measurements of a finished run: masks and taps."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import train_arguments

from engine.evaluation.masks import radial_profile
from engine.weights.load_network import build_start, load_trained
from experiments import measures
from experiments.figures import select
from experiments.measures import decay_of, measure_masks, measure_taps, overlap
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
    """Values of a quantity without a distance, by iteration."""
    own = select(rows, quantity=quantity, block=block, distance="")
    return {int(row["iteration"]): float(row["value"]) for row in own}


def profile(rows, quantity, iteration=2, block=BLOCK):
    own = select(rows, quantity=quantity, block=block, iteration=iteration)
    assert [row["distance"] for row in own] == [str(distance) for distance in range(len(own))]
    return [float(row["value"]) for row in own]


def test_masks_of_every_snapshot_and_of_the_end(run_folder):
    folder = run_folder("--network", "REP3D", "--snapshot_step", "1")
    rows = measure_masks(folder)
    assert len({row["block"] for row in rows}) == 8
    assert list(values(rows, "correction")) == list(values(rows, "smallest")) == [1, 2]
    network = load_trained(folder / LAST, "run").network
    mask, prior = network.encoder.stages[0][0].lrbm()[0, 0].detach(), compute_distance_prior(5)
    assert values(rows, "correction")[2] == pytest.approx(((mask - prior).abs() / prior).mean().item(), rel=1e-4)
    assert profile(rows, "mask") == pytest.approx(radial_profile(mask.numpy()), rel=1e-4)
    assert profile(rows, "prior") == pytest.approx(radial_profile(prior.numpy()), rel=1e-4)
    early = load_trained(folder / "weights_1.pth", "run").network.encoder.stages[0][0].lrbm()[0, 0].detach()
    assert profile(rows, "mask", iteration=1) == pytest.approx(radial_profile(early.numpy()), rel=1e-4)
    assert profile(rows, "mask", iteration=1) != profile(rows, "mask")


def test_a_network_without_masks_has_no_rows(run_folder):
    assert measure_masks(run_folder("--network", "REP3D_NONE")) == []


def test_loss_in_windows(run_folder, monkeypatch):
    folder = run_folder("--network", "REP3D_NONE", "--max_iter", "3", "--eval_step", "3")
    losses = [event.value for event in measures.read_log(folder).Scalars("train/loss")]
    monkeypatch.setattr(measures, "LOSS_WINDOW", 2)
    rows = measures.measure_loss(folder)
    assert [row["iteration"] for row in rows] == ["2", "3"]
    assert [float(row["value"]) for row in rows] == pytest.approx([np.mean(losses[:2]), losses[2]], rel=1e-4)


def test_validations_with_the_time_of_training(run_folder):
    folder = run_folder("--network", "REP3D_NONE")
    rows = measures.measure_validation(folder)
    log = measures.read_log(folder)
    seconds = [sum(log.Scalars(f"train/{part}_s")[step].value for part in ("data_wait", "compute")) for step in (0, 1)]
    assert list(values(rows, "minutes", "")) == [1, 2]
    assert list(values(rows, "minutes", "").values()) == pytest.approx(np.cumsum(seconds) / 60, rel=1e-4)
    final = json.loads((folder / "dice.json").read_text())["mean"]["mean"]
    assert values(rows, "mean Dice", "")[2] == pytest.approx(final, rel=1e-4)


@pytest.mark.parametrize("network", ["REP3D_NONE", "REP3D_FIXED"])
def test_gradients_are_those_of_the_effective_kernel(run_folder, network):
    folder = run_folder("--network", network)
    trained = load_trained(folder / LAST, "run")
    names = [name for name, _ in trained.network.named_parameters()]
    state = trained.content["optimizer"]["state"][names.index(f"{BLOCK}.dwconv.weight")]
    moment = state["exp_avg_sq"] / (1 - 0.999**2)
    mask = compute_distance_prior(5) if network == "REP3D_FIXED" else torch.ones(5, 5, 5)
    expected = np.sqrt(radial_profile((moment.mean(dim=(0, 1)) / mask**2).numpy()))
    assert profile(measure_taps(folder), "gradient") == pytest.approx(expected, rel=1e-4)


def test_changes_are_relative_to_the_start_of_the_seed(run_folder):
    folder = run_folder("--network", "REP3D_NONE", "--seed", "3", "--snapshot_step", "1")
    rows = measure_taps(folder)
    end, config, *_ = load_trained(folder / LAST, "run")
    networks = end, load_trained(folder / "weights_1.pth", "run").network, build_start(config, 3)
    end, early, start = (network.encoder.stages[0][0].dwconv.weight.detach()[..., 2, 2, 2] for network in networks)
    left = (end - early).norm() / (end - start).norm()
    assert profile(rows, "change")[0] == pytest.approx(((end - start).norm() / start.norm()).item(), rel=0.01)
    assert profile(rows, "remaining", 1)[0] == pytest.approx(left.item(), rel=1e-4)
    assert max(profile(rows, "remaining", 2)) == 0


def test_weight_decay_is_no_change(run_folder):
    folder = run_folder("--network", "REP3D_NONE", "--weight_decay", "5", "--lr", "1e-2")
    network, config, _, content = load_trained(folder / LAST, "run")
    kernels = (net.encoder.stages[3][1].dwconv.weight.detach() for net in (network, build_start(config, 0)))
    end, start = (kernel[..., 0, 0, 0] for kernel in kernels)  # a corner, which meets no data
    assert decay_of(content["args"]) < 0.95
    torch.testing.assert_close(end, decay_of(content["args"]) * start)


def test_an_untrained_kernel_has_not_changed(run_folder):
    folder = run_folder("--network", "REPOPT", "--network_args", "branches=true", "--lr", "1e-30")
    assert max(profile(measure_taps(folder), "change")) == 0


def test_taps_without_data_are_left_out(run_folder):
    rows = measure_taps(run_folder("--network", "REP3D_NONE"))
    last = "rep3d.stages.3.1"  # the grid is 2 x 2 x 1
    assert all(value > 0 for value in profile(rows, "gradient", block=last))
    # Of the taps that meet data, 1 is the centre, and 4 + 4 are at distances 1 and 1.41.
    assert profile(rows, "overlap", block=last) == pytest.approx([1, (4 / 2 + 4 / 4) / 8])


def test_overlap_counts_positions():
    shares = overlap(3, (4, 2, 1))
    assert shares[1, 1, 1] == 1
    assert shares[0, 1, 1] == shares[2, 1, 1] == 3 / 4
    assert shares[1, 0, 1] == 1 / 2
    assert shares[1, 1, 0] == 0
    assert shares[0, 2, 1] == 3 / 8
    assert math.isclose(shares.sum(), (1 + 2 * 3 / 4) * (1 + 2 / 2))

"""Counts against hand calculations, and one real measurement of each outcome."""

import json
import re
import sys

import pytest
import torch
from torch import nn

from engine.runtime.errors import run
from engine.weights.checkpoints import NetworkConfig
from networks import NETWORKS
from networks.UNesT.nest import BlockAttention
from tools import summary

STEP_KEYS = {"autocast", "step_seconds", "peak_bytes", "reason"}


@pytest.fixture
def summarise(capsys, tmp_path):
    """Run the tool: (exit status, table's rows as lists of cells, JSON or None, stderr)."""

    def call(*flags):
        file = tmp_path / "summary.json"
        try:
            status = run(summary.main, summary.parse_args(["--gpu", "cpu", "--json", str(file), *flags]))
        except SystemExit as stop:  # argparse
            status = stop.code
        captured = capsys.readouterr()
        lines = [line for line in captured.out.splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) <= 1  # aligned
        table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return status, table, json.loads(file.read_text()) if file.exists() else None, captured.err

    return call


def test_multiply_adds_of_plain_layers():
    with torch.device("meta"):
        layers = nn.Sequential(
            nn.Conv3d(2, 6, 3, stride=2, padding=1, groups=2),  # (1, 2, 8, 8, 8) -> (1, 6, 4, 4, 4), 27 taps
            nn.InstanceNorm3d(6),
            nn.ConvTranspose3d(6, 4, 2, stride=2),  # -> (1, 4, 8, 8, 8), 8 taps a voxel of its input
            nn.Flatten(2),
            nn.Linear(512, 5),
        )
    expected = 6 * 4**3 * 27 * 1 + 6 * 4 * 4**3 * 8 + 4 * 512 * 5
    assert summary.count_multiply_adds(layers, (1, 2, 8, 8, 8)) == expected
    assert summary.count_multiply_adds(layers, (3, 2, 8, 8, 8)) == 3 * expected


def test_multiply_adds_of_attention():
    tokens, dim = 216, 768
    unetr = summary.build_on_meta(NetworkConfig("UNETR", 1, 2, (96, 96, 96), {}))
    block = unetr.get_submodule("vit.blocks.0")  # 4 dim^2 of attention's projections, 8 dim^2 of the perceptron
    assert summary.count_multiply_adds(block, (1, tokens, dim)) == 12 * tokens * dim**2 + 2 * tokens**2 * dim
    with torch.device("meta"):
        fused = BlockAttention(dim=8, num_heads=2)  # scaled_dot_product_attention
    assert summary.count_multiply_adds(fused, (1, 3, 5, 8)) == 3 * (4 * 5 * 8**2 + 2 * 5**2 * 8)


def rep3d_multiply_adds(side, chans, classes, feat_size, kernel_size):
    """REP3D's at batch 1, two blocks a stage, written down from its description."""
    voxels = [(side // 2**level) ** 3 for level in range(5)]
    widths = [*feat_size, 2 * feat_size[-1]]
    total = chans * feat_size[0] * voxels[1] * 7**3  # stem
    for stage, dim in enumerate(feat_size):
        total += 2 * dim * voxels[stage + 1] * kernel_size**3
        if stage:
            total += feat_size[stage - 1] * dim * voxels[stage + 1] * 2**3

    def residual(level, narrow, wide):  # two 3^3 convolutions, 1^3 on the shortcut where the width changes
        return voxels[level] * (27 * narrow * wide + 27 * wide**2 + (narrow * wide if narrow != wide else 0))

    total += sum(residual(level, skip, widths[level]) for level, skip in enumerate((chans, *feat_size)))
    for level in (3, 2, 1, 0):
        total += widths[level + 1] * widths[level] * voxels[level + 1] * 2**3
        total += residual(level, 2 * widths[level], widths[level])
    return total + residual(0, widths[0], widths[0]) + widths[0] * classes * voxels[0]


@pytest.mark.parametrize(
    ("side", "feat_size", "kernel_size"),
    [(32, (2, 4, 6, 8), 21), (96, (48, 96, 192, 384), 21), (64, (4, 8, 12, 16), 5)],
)
def test_multiply_adds_of_rep3d_are_those_of_the_plain_convolution(side, feat_size, kernel_size):
    overrides = {"feat_size": feat_size, "kernel_size": kernel_size}
    network = summary.build_on_meta(NetworkConfig("REP3D", 1, 3, (side,) * 3, overrides), deploy=True)
    expected = rep3d_multiply_adds(side, 1, 3, feat_size, kernel_size)
    assert summary.count_multiply_adds(network, (1, 1, *[side] * 3)) == expected


def test_every_network_is_counted_without_a_step(summarise):
    status, table, result, _ = summarise("--no_step")
    assert status == 0
    header, rule, *rows = table
    assert header == ["network", "parameters, M", "deployed, M", "multiply-adds, G"]
    assert set("".join(rule)) == {"-", ":"}
    assert [row[0] for row in rows] == [row["network"] for row in result["rows"]] == list(NETWORKS)
    cells = {name: numbers for name, *numbers in rows}
    assert cells["REP3D"] == ["65.98", "65.83", "703.51"]
    assert cells["3DUXNET_LRBM"][:2] == ["66.00", "65.85"]
    assert cells["STUNet_H"][0] == "1457.06"
    # 21^3 instead of 7^3 taps in two blocks at each of 48 x 48^3, 96 x 24^3, 192 x 12^3 and 384 x 6^3
    adds = {row["network"]: row["multiply_adds"] for row in result["rows"]}
    assert adds["3DUXNET_K21"] - adds["3DUXNET"] == 2 * 7_050_240 * (21**3 - 7**3)
    assert result["input"] == [1, 1, 96, 96, 96]
    assert not any(STEP_KEYS & set(row) for row in result["rows"])


def test_a_step_is_measured(summarise):
    ours = torch.ones(500_000_000, dtype=torch.float32)  # 2 GB that are not the step's
    status, table, result, _ = summarise("--networks", "UNet3D", "--roi_size", "32", "32", "32", "--steps", "1")
    assert status == 0
    (row,) = result["rows"]
    assert row["autocast"] in ("off", "bf16")
    assert row["reason"] is None
    assert 0 < row["step_seconds"] < 60
    assert 2e8 < row["peak_bytes"] < ours.nbytes  # Python and PyTorch alone take more than the first
    assert table[0][4:] == ["step, s", "peak memory, GB"]
    measured = [f"{row['step_seconds']:.3g}", f"{row['peak_bytes'] / 1e9:.2f}"]
    assert table[2] == ["UNet3D", "4.83", "4.83", "0.46", *measured]
    assert {"device", "threads", "date", "versions"} <= set(result)
    assert result["versions"]["torch"] == torch.__version__
    assert (result["steps"], result["classes"]) == (1, 16)


def test_a_step_that_cannot_fit_is_not_tried(summarise, monkeypatch):
    monkeypatch.setattr(summary, "available_memory", lambda device: 10**9)
    monkeypatch.setattr(summary, "measure_step", None)
    status, table, result, _ = summarise("--networks", "STUNet_H")
    assert status == 0
    assert table[2][4:] == ["out of memory", "-"]
    assert result["rows"][0]["step_seconds"] is result["rows"][0]["peak_bytes"] is None
    reason = "out of memory: weights, gradients and AdamW state take 23.3 GB, 1.0 GB are available"
    assert result["rows"][0]["reason"] == reason


def test_a_step_that_runs_out_of_memory_does_not_end_the_table(summarise):
    status, table, result, _ = summarise("--networks", "UNet3D", "--roi_size", *["8192"] * 3, "--steps", "1")
    assert status == 0
    assert table[2][4:] == ["out of memory", "-"]
    assert "can't allocate memory" in result["rows"][0]["reason"]


@pytest.mark.parametrize(("status", "cell"), [(-9, "out of memory"), (1, "failed"), (-11, "failed")])
def test_a_process_that_ends_without_an_answer(summarise, monkeypatch, status, cell):
    class Ended:
        exitcode = status

        def __init__(self, target, args, daemon):
            args[-1].close()

        start = join = lambda self: None

    monkeypatch.setattr(sys.modules["multiprocessing.context"].SpawnContext, "Process", Ended)
    code, table, result, _ = summarise("--networks", "UNet3D")
    assert code == 0
    assert table[2][4:] == [cell, "-"]
    assert result["rows"][0]["reason"].startswith(f"{cell}: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--networks", "REP4D"], "argument --networks: invalid choice: 'REP4D'"),
        (["--networks", "UNet3D", "SwinUNETR", "--roi_size", "96", "96", "80"], "SwinUNETR: .*divisible by 32"),
        (["--roi_size", "0", "96", "96"], "argument --roi_size: found '0'"),
        (["--networks", "REP3D", "--kernel_size", "8"], "argument --kernel_size: found '8', expected an odd"),
        (["--networks", "REP3D", "UNETR", "--kernel_size", "7"], "UNETR: found argument kernel_size"),
        (["--networks", "UNet3D", "--roi_size", *["32"] * 3, "--amp", "bf16"], "UNet3D: --amp: found bf16 on a CPU"),
        (["--networks", "UNet3D", "--steps", "0"], "argument --steps: found '0'"),
        (["--networks", "UNet3D", "--gpu", "first"], "--gpu: found 'first'"),
        (["--networks", "UNet3D", "--json", "nowhere/summary.json"], "--json: nowhere/summary.json cannot be written"),
    ],
)
def test_mistakes_are_one_line(summarise, flags, message):
    status, table, result, error = summarise(*flags)
    assert (status, table, result) == (2, [], None)
    *progress, line = error.splitlines()
    assert re.match(f"(summary: )?error: .*{message}", line)
    assert all(re.match("$|counting: ", bar) for bar in progress)


def test_a_missing_optional_package_is_named(summarise, monkeypatch):
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    status, table, result, error = summarise("--networks", "ResEncUNet", "--no_step")
    assert (status, table, result) == (2, [], None)
    assert "ResEncUNet: found no package dynamic-network-architectures" in error
    status, table, _, error = summarise("--no_step")
    assert status == 0
    assert [row[0] for row in table[2:]] == [name for name in NETWORKS if name != "ResEncUNet"]
    assert "ResEncUNet is left out: found no package" in error

"""tools.summary: counts against hand calculations, one real measurement of each outcome, and the table of the page."""

import json
import re
import sys

import pytest
import torch
from torch import nn

from benchmarks.measure import Step
from engine.runtime.errors import run
from engine.weights.checkpoints import NetworkConfig
from networks import NETWORKS
from networks.UNesT.nest import BlockAttention
from tools import summary

MACHINE = {"device": "Xeon", "cpu": "Xeon", "threads": 2, "torch": "2.13.0", "date": "2026-11-22", "monai": "1.6.1"}


def call(capsys, *flags):
    """Run the tool: (exit status, cells of the printed table, stderr)."""
    capsys.readouterr()
    try:
        status = run(summary.main, summary.parse_args(["--gpu", "cpu", *flags]))
    except SystemExit as stop:  # argparse
        status = stop.code
    captured = capsys.readouterr()
    return status, table_cells(captured.out), captured.err


def table_cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def summarise(capsys):
    return lambda *flags: call(capsys, *flags)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Redirect the results and the page to a folder, with one stored row and an empty table."""
    results, page = tmp_path / "summary_cpu.json", tmp_path / "networks.md"
    results.write_text(json.dumps({"rows": [stored_row("REP3D", step_seconds=29.6)]}))
    page.write_text(f"# Networks\n\n{summary.BEGIN}{summary.END}\nThe end.\n")
    monkeypatch.setattr(summary, "RESULTS", results)
    monkeypatch.setattr(summary, "PAGE", page)
    return results, page


def stored_row(name, parameters=65980600, **values):
    counts = {"parameters": parameters, "deployed_parameters": 65826928, "multiply_adds": 703505958912}
    step = {"autocast": "off", "steps": 1, "step_seconds": 1.5, "peak_bytes": 6_471_090_176, "reason": None}
    return {"network": name, **counts, **step, "machine": MACHINE, **values}


@pytest.fixture(scope="module")
def counts():
    """Counts of every network, by name, and the settings they were counted with."""
    args = summary.parse_args(["--no_step"])
    rows = [summary.count(name, args, {}, torch.device("cpu"))[0] for name in summary.available_networks()]
    return {row["network"]: row for row in rows}


# Counts


def test_multiply_adds_of_plain_layers():
    with torch.device("meta"):
        layers = nn.Sequential(
            nn.Conv3d(2, 6, 3, stride=2, padding=1, groups=2),  # (1, 2, 8, 8, 8) -> (1, 6, 4, 4, 4), 27 taps
            nn.InstanceNorm3d(6),
            nn.ConvTranspose3d(6, 4, 2, stride=2),  # -> (1, 4, 8, 8, 8), 8 taps per voxel of its input
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
    """Compute the count of REP3D at batch 1, with two blocks per stage, from its description."""
    voxels = [(side // 2**level) ** 3 for level in range(5)]
    widths = [*feat_size, 2 * feat_size[-1]]
    total = chans * feat_size[0] * voxels[1] * 7**3  # stem
    for stage, dim in enumerate(feat_size):
        total += 2 * dim * voxels[stage + 1] * kernel_size**3
        if stage:
            total += feat_size[stage - 1] * dim * voxels[stage + 1] * 2**3

    def residual(level, narrow, wide):  # two 3^3 convolutions, 1^3 on the shortcut if the width changes
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


def test_every_network_is_counted(counts):
    cells = {name: summary.cells(row)[1:] for name, row in counts.items()}
    assert cells["REP3D"] == ["65.98", "65.83", "703.51"]
    assert cells["3DUXNET_LRBM"][:2] == ["66.00", "65.85"]
    assert cells["STUNet_H"][0] == "1457.06"
    # 21^3 instead of 7^3 taps in two blocks at each of 48 x 48^3, 96 x 24^3, 192 x 12^3 and 384 x 6^3
    more = counts["3DUXNET_K21"]["multiply_adds"] - counts["3DUXNET"]["multiply_adds"]
    assert more == 2 * 7_050_240 * (21**3 - 7**3)


def test_the_page_has_the_current_counts(counts):
    stored = {row["network"]: row for row in summary.read_rows()}
    for name in counts.keys() & stored.keys():
        expected = {**stored[name], **counts[name]}
        assert expected == stored[name], f"python -m tools.summary --networks {name} --update --gpu cpu"


def test_the_page_has_the_stored_rows_in_order():
    rows = summary.read_rows()
    stored = [row["network"] for row in rows]
    assert stored == [name for name in NETWORKS if name in stored]
    assert summary.updated_page(rows) == summary.PAGE.read_text()
    assert summary.SYSTEMS.keys() <= NETWORKS.keys()


def test_only_the_named_networks_are_counted(summarise):
    status, table, _ = summarise("--no_step", "--networks", "UNet3D", "REP3D")
    assert status == 0
    header, rule, *rows = table
    assert header == ["network", "parameters, M", "deployed, M", "multiply-adds, G"]
    assert set("".join(rule)) == {"-", ":"}
    assert rows == [["UNet3D", "4.83", "4.83", "12.48"], ["REP3D", "65.98", "65.83", "703.51"]]


def test_constructor_arguments_are_flags(summarise):
    flags = ("--feat_size", "4", "8", "12", "16", "--kernel_size", "5", "--network_args", "generator_depth=1")
    status, table, _ = summarise("--no_step", "--networks", "REP3D", *flags)
    expected = rep3d_multiply_adds(96, 1, 16, (4, 8, 12, 16), 5)
    assert (status, table[2][3]) == (0, f"{expected / 1e9:.2f}")


# Steps


def test_a_step_is_measured(summarise):
    ours = torch.ones(500_000_000, dtype=torch.float32)  # 2 GB in this process, which do not count
    status, table, _ = summarise("--networks", "UNet3D", "--roi_size", "32", "32", "32", "--steps", "1")
    assert status == 0
    assert table[0][4:] == ["step, s", "peak memory, GB"]
    assert table[2][:4] == ["UNet3D", "4.83", "4.83", "0.46"]
    assert 0 < float(table[2][4]) < 60
    assert 0.2 < float(table[2][5]) < ours.nbytes / 1e9  # Python and PyTorch alone take more than 0.2


def test_a_step_that_cannot_fit_is_not_tried(summarise, monkeypatch):
    monkeypatch.setattr(summary, "available_memory", lambda device: 10**8)
    monkeypatch.setattr(summary, "measure_step", None)
    status, table, _ = summarise("--networks", "REP3D")
    assert status == 0
    assert table[2][4:] == ["out of memory", "-"]
    found = summary.measure(make_step("REP3D"), 10**9, 1)
    assert found["step_seconds"] is found["peak_bytes"] is None
    reason = "out of memory: weights, gradients and AdamW state take 16.0 GB, 0.1 GB are available"
    assert found["reason"] == reason


def make_step(name, side=96):
    return Step(NetworkConfig(name, 1, 16, (side,) * 3, {}), 1, torch.device("cpu"), None)


def test_a_step_that_runs_out_of_memory_has_a_reason():
    found = summary.measure(make_step("UNet3D", 8192), 1, 1)
    assert found["reason"].startswith("out of memory: ")
    assert "can't allocate memory" in found["reason"]


@pytest.mark.parametrize(("status", "cell"), [(-9, "out of memory"), (1, "failed"), (-11, "failed")])
def test_a_process_that_ends_without_an_answer(summarise, monkeypatch, status, cell):
    class Ended:
        exitcode = status

        def __init__(self, target, args, daemon):
            args[-1].close()

        start = join = lambda self: None

    monkeypatch.setattr(sys.modules["multiprocessing.context"].SpawnContext, "Process", Ended)
    code, table, _ = summarise("--networks", "UNet3D")
    assert code == 0
    assert table[2][4:] == [cell, "-"]


# The page


def test_update_adds_a_row_in_order(summarise, files, monkeypatch):
    results, page = files
    found = {"step_s": 2.0, "peak_bytes": 3 * 10**9, "reason": None}
    monkeypatch.setattr(summary, "measure_step", lambda *args, **options: found)
    monkeypatch.setitem(NETWORKS, "MyNet", NETWORKS["UNet3D"])
    status, table, _ = summarise("--networks", "MyNet", "UNet3D", "--update", "--amp", "off", "--steps", "2")
    assert status == 0
    assert [row[0] for row in table[2:]] == ["MyNet", "UNet3D"]

    content = json.loads(results.read_text())
    assert content["roi_size"] == [96, 96, 96]
    assert [row["network"] for row in content["rows"]] == ["REP3D", "UNet3D", "MyNet"]
    machines = [row["machine"] for row in content["rows"]]
    assert machines[0] == MACHINE
    assert machines[1] == machines[2]
    assert machines[1]["torch"] == torch.__version__

    text = page.read_text()
    assert text.startswith(f"# Networks\n\n{summary.BEGIN}| `--network` | system |")
    assert text.endswith(f"{summary.END}\nThe end.\n")
    rows = table_cells(text)[2:]
    assert rows == [
        ["`REP3D`", "Rep3D, learned mask (LRBM)", "66.0", "65.98", "65.83", "703.51", "29.6", "6.47"],
        ["`UNet3D`", "3D U-Net (MONAI)", "4.81", "4.83", "4.83", "12.48", "2", "3.00"],
        ["`MyNet`", "", "", "4.83", "4.83", "12.48", "2", "3.00"],
    ]
    new = f"{machines[1]['device']}, {machines[1]['threads']} CPU threads, torch {torch.__version__}, "
    assert re.search(
        rf"^Steps: {re.escape(new)}[-0-9]+, autocast off, median of 2; "
        r"`REP3D`: Xeon, 2 CPU threads, torch 2.13.0, 2026-11-22, autocast off, median of 1\.$",
        text,
        re.MULTILINE,
    )


def test_a_row_replaces_the_stored_one_and_rows_without_a_network_go():
    stored = [stored_row("REP3D"), stored_row("Gone"), stored_row("UNETR")]
    new = [stored_row("UNETR", step_seconds=2.5), stored_row("REPOPT")]
    assert summary.merge_rows(stored, new) == [stored[0], new[1], new[0]]


def test_counts_alone_keep_the_step_of_an_unchanged_network():
    stored = [stored_row("REP3D"), stored_row("UNETR")]
    same, changed = (
        {key: stored_row(name, parameters)[key] for key in ("network", *summary.COUNTS)}
        for name, parameters in (("REP3D", 65980600), ("UNETR", 7))
    )
    rows = summary.merge_rows(stored, [changed, same])
    assert rows == [stored[0], changed]
    table = summary.page_table(rows)
    assert table_cells(table)[3] == ["`UNETR`", "UNETR (MONAI)", "92.8", "0.00", "65.83", "703.51", "not measured", "-"]
    assert "Steps: Xeon, 2 CPU threads, torch 2.13.0, 2026-11-22, autocast off, median of 1.\n" in table


def test_update_without_a_step(summarise, files):
    results, page = files
    status, _, _ = summarise("--networks", "REP3D", "UNet3D", "--update", "--no_step")
    assert status == 0
    assert json.loads(results.read_text())["rows"][0] == stored_row("REP3D", step_seconds=29.6)
    assert [row[-2:] for row in table_cells(page.read_text())[2:]] == [["29.6", "6.47"], ["not measured", "-"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--roi_size", "64", "64", "64"], "--roi_size: found 64 64 64, expected 96 96 96 with --update"),
        (["--out_chans", "3"], "--out_chans: found 3, expected 16 with --update"),
        (["--network_args", "dropout=0.5"], "--network_args: found it with --update, expected networks with their"),
    ],
)
def test_update_refuses_other_settings(summarise, files, flags, message):
    before = [path.read_text() for path in files]
    status, table, error = summarise("--networks", "UNet3D", "--update", "--no_step", *flags)
    assert (status, table) == (2, [])
    assert error.startswith(f"error: {message}")
    assert len(error.splitlines()) == 1
    assert [path.read_text() for path in files] == before


def test_update_needs_both_markers(summarise, files):
    files[1].write_text(f"# Networks\n\n{summary.END}")
    status, _, error = summarise("--networks", "UNet3D", "--update", "--no_step")
    assert status == 2
    assert "expected both on their own lines" in error


# Mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--networks", "REP4D"], "argument --networks: invalid choice: 'REP4D'"),
        (["--networks", "UNet3D", "SwinUNETR", "--roi_size", "96", "96", "80"], "SwinUNETR: .*divisible by 32"),
        (["--roi_size", "0", "96", "96"], "argument --roi_size: found '0'"),
        (["--networks", "REP3D", "--kernel_size", "8"], "argument --kernel_size: found '8', expected an odd"),
        (["--networks", "UNet3D", "UNETR", "--kernel_size", "7"], "--networks UNet3D: found argument kernel_size"),
        (["--networks", "UNETR", "--network_args", "beta=2"], "--networks UNETR: found argument beta, expected some"),
        (["--networks", "UNet3D", "--roi_size", *["32"] * 3, "--amp", "bf16"], "UNet3D: --amp: found bf16 on a CPU"),
        (["--networks", "UNet3D", "--steps", "0"], "argument --steps: found '0'"),
        (["--networks", "UNet3D", "--gpu", "first"], "--gpu: found 'first'"),
    ],
)
def test_mistakes_are_one_line(summarise, flags, message):
    status, table, error = summarise(*flags)
    assert (status, table) == (2, [])
    *progress, line = error.splitlines()
    assert re.match(f"(summary: )?error: .*{message}", line)
    assert all(re.match("$|counting: ", bar) for bar in progress)


def test_a_missing_optional_package_is_named(summarise, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    status, table, error = summarise("--networks", "ResEncUNet", "--no_step")
    assert (status, table) == (2, [])
    assert "ResEncUNet: found no package dynamic-network-architectures" in error
    assert summary.available_networks() == [name for name in NETWORKS if name != "ResEncUNet"]
    assert "ResEncUNet is left out: found no package" in capsys.readouterr().err

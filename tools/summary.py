"""Measure the costs of the networks: parameters, multiply-adds, time and peak memory of a training step.

    python -m tools.summary
    python -m tools.summary --networks REP3D SwinUNETR --roi_size 128 128 128 --gpu 0
    python -m tools.summary --networks MyNet --update --gpu cpu

Prints a table with one row per network. --update also adds or replaces these rows in the table of docs/networks.md,
whose values are stored in benchmarks/results/summary_cpu.json; with --no_step, a stored step stays if the counts are
the same.

Counted without data, on the meta device: parameters in the training form and in the deployed form
(``build_network(..., deploy=True)``), and multiply-adds of a forward of the deployed network. Only convolutions and
matrix products, including those of attention, are counted. A convolution has one multiply-add per output voxel, tap and
pair of channels, including taps on zero padding, whatever algorithm computes it.

Measured: forward, DiceCE loss, backward and AdamW update on random data, the median of ``--steps`` after one warm-up
step. Peak memory includes the warm-up. On a GPU it is the memory that PyTorch allocated for tensors; on a CPU (Linux
only) the resident memory of the process, including about 0.5 GB for Python and the libraries. GB are 10^9 bytes.

Each network is measured in its own process. If a network does not fit or runs out of memory, its row states so.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import monai
import torch
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.measure import OUT_OF_MEMORY, UNMEASURED, Step, available_memory, measure_step
from benchmarks.report import describe_machine, name_machine, replace_section
from engine.runtime.arguments import (
    NETWORK_FLAGS,
    add_device_arguments,
    add_network_arguments,
    format_value,
    network_overrides,
    number,
)
from engine.runtime.devices import choose_device, choose_precision
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import write_text
from engine.weights.checkpoints import NetworkConfig
from networks import NETWORKS
from networks.base import SegmentationNetwork
from networks.res_enc_unet import ResEncUNet

Row = dict[str, Any]

BYTES_PER_PARAMETER = 4 * 4  # weight, gradient and AdamW's two moments, float32
COUNTS = ("parameters", "deployed_parameters", "multiply_adds")

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "summary_cpu.json"
PAGE = ROOT / "docs" / "networks.md"
BEGIN, END = "<!-- networks -->\n", "<!-- end of networks -->\n"
# The settings of every row of the page.
PAGE_SETTINGS = {"in_chans": 1, "out_chans": 16, "roi_size": [96, 96, 96], "batch_size": 1}
PAGE_HEADER = (
    *("`--network`", "system", "papers, M", "here, M", "deployed, M"),
    *("multiply-adds, G", "step, s", "peak memory, GB"),
)
# Name -> (system, parameters in the paper's tables or, if they have none, in those of its predecessors, M); optional.
SYSTEMS = {
    "REP3D": ("Rep3D, learned mask (LRBM)", "66.0"),
    "REP3D_FIXED": ("Rep3D, fixed prior", "65.8"),
    "REP3D_NONE": ("plain 21³ kernels", ""),
    "3DUXNET": ("3D UX-Net, 7³ kernels", "53.0"),
    "3DUXNET_K21": ("3D UX-Net, 21³", "65.9"),
    "3DUXNET_LRBM": ("3D UX-Net, 21³ with LRBM", ""),
    "3DUXNET_LRBM_K7": ("3D UX-Net, 7³ with LRBM", ""),
    "REPUXNET": ("RepUX-Net", "65.8"),
    "REPOPT": ("RepOptimizer on plain 21³ kernels", ""),
    "SwinUNETR": ("SwinUNETR (MONAI)", "62.2"),
    "HyenaNDUNETR": ("HyenaND in SwinUNETR (MONAI), global kernels", ""),
    "UNETR": ("UNETR (MONAI)", "92.8"),
    "UNet3D": ("3D U-Net (MONAI)", "4.81"),
    "nnUNet": ("nnU-Net's plain network (MONAI)", "31.2"),
    "MedNeXt_S": ("MedNeXt S (MONAI, corrected)", ""),
    "MedNeXt_B": ("MedNeXt B", ""),
    "MedNeXt_M": ("MedNeXt M", ""),
    "MedNeXt_L": ("MedNeXt L, 5³ kernels", "about 63"),
    "ResEncUNet": ("residual-encoder nnU-Net", ""),
    "nnFormer": ("nnFormer", "149.3"),
    "TransBTS": ("TransBTS", "31.6"),
    "UNesT": ("UNesT-B", "87.2"),
    "STUNet_S": ("STU-Net S", ""),
    "STUNet_B": ("STU-Net B", ""),
    "STUNet_L": ("STU-Net L", ""),
    "STUNet_H": ("STU-Net H", "about 1457"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("summary", description=__doc__.splitlines()[0])
    networks = parser.add_argument_group("networks and input")
    networks.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME", help="networks (default: all)")
    add_network_arguments(networks)
    networks.add_argument("--in_chans", type=number(int, 1), default=1, metavar="N", help="input channels")
    networks.add_argument("--out_chans", type=number(int, 2), default=16, metavar="N", help="classes with background")
    side, size = number(int, 1), "size of the input, voxels"
    networks.add_argument("--roi_size", nargs=3, type=side, default=[96, 96, 96], metavar=("D", "H", "W"), help=size)
    networks.add_argument("--batch_size", type=number(int, 1), default=1, metavar="N", help="samples per batch")

    step = parser.add_argument_group("step")
    add_device_arguments(step)
    step.add_argument("--steps", type=number(int, 1), default=3, metavar="N", help="timed steps, of which the median")
    step.add_argument("--no_step", action="store_true", help="count only")
    parser.add_argument("--update", action="store_true", help="add or replace these rows in docs/networks.md")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Count, measure, print the table and, with ``--update``, rewrite the table of docs/networks.md."""
    overrides = network_overrides(args)
    with redirect_stdout(sys.stderr):  # stdout is for the table
        device = choose_device(args.gpu)
    if args.update:
        check_update(args, overrides, device)
    with tqdm(args.networks or available_networks(), "counting") as names:
        counted = [count(name, args, overrides, device) for name in names]
    # All mistakes have been reported by now: what follows may take long.
    machine = {**describe_machine(device), "monai": monai.__version__}
    for row, step in tqdm(counted, "measuring", disable=args.no_step):
        if step is not None:
            row.update(measure(step, row["parameters"], args.steps), machine=machine)
    rows = [row for row, _ in counted]
    print(report(args, rows, machine))
    if args.update:
        update(rows)


def available_networks() -> list[str]:
    """List all networks, without ResEncUNet if its package is not installed."""
    try:
        with torch.device("meta"):
            ResEncUNet(feat_size=(1, 1), n_blocks=(1, 1))
    except ValueError as error:
        print(f"ResEncUNet is left out: {error}", file=sys.stderr)
        return [name for name in NETWORKS if name != "ResEncUNet"]
    return list(NETWORKS)


def build_on_meta(config: NetworkConfig, deploy: bool = False) -> SegmentationNetwork:
    """Build the network without data, in evaluation mode.

    Raises:
        InputError: the arguments are invalid for the network; the message names ``--networks``.
    """
    with torch.device("meta"):
        return config.build(deploy, source=f"--networks {config.network}").eval()


def count(
    name: str, args: argparse.Namespace, overrides: dict[str, Any], device: torch.device
) -> tuple[Row, Step | None]:
    """Count parameters of a network and multiply-adds of its deployed form; also return the step to measure, if any."""
    config = NetworkConfig(name, args.in_chans, args.out_chans, tuple(args.roi_size), overrides)
    network, deployed = build_on_meta(config), build_on_meta(config, deploy=True)
    row = {
        "network": name,
        "parameters": count_parameters(network),
        "deployed_parameters": count_parameters(deployed),
        "multiply_adds": count_multiply_adds(deployed, (args.batch_size, args.in_chans, *args.roi_size)),
    }
    if args.no_step:
        return row, None
    return row, Step(config, args.batch_size, device, find_precision(args.amp, device, network, config))


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_multiply_adds(network: nn.Module, shape: Sequence[int]) -> int:
    """Count the multiply-adds of one forward: convolutions, as direct ones with all their taps, and matrix products.

    Args:
        network: network on the meta device.
        shape: (N, C, D, H, W) of the input.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(tuple(shape), device="meta"))
    return counter.get_total_flops() // 2  # PyTorch counts a multiply-add as two operations


def find_precision(
    amp: str, device: torch.device, network: SegmentationNetwork, config: NetworkConfig
) -> torch.dtype | None:
    """Return the autocast type of ``--amp``.

    Raises:
        InputError: the network cannot run in it; the message names the network.
    """
    try:
        return choose_precision(amp, device, config.roi_size, network.input_sizes)
    except InputError as mistake:
        raise InputError(f"--networks {config.network}: {mistake}") from mistake


def measure(step: Step, parameters: int, repeats: int) -> Row:
    """Measure median seconds and peak bytes of a step in its own process; if it fails, they are None with a reason."""
    memory, needed = available_memory(step.device), BYTES_PER_PARAMETER * parameters
    if needed > memory:
        reason = f"weights, gradients and AdamW state take {needed / 1e9:.1f} GB, {memory / 1e9:.1f} GB are available"
        found = {**UNMEASURED, "reason": f"{OUT_OF_MEMORY}: {reason}"}
    else:
        found = measure_step(step, repeats, own_process=True)
    return {
        "autocast": step.autocast,
        "steps": repeats,
        "step_seconds": found["step_s"],
        "peak_bytes": found["peak_bytes"],
        "reason": found["reason"],
    }


def report(args: argparse.Namespace, rows: Sequence[Row], machine: dict[str, Any]) -> str:
    """Format the input and the machine as one line, and the table in Markdown."""
    header = ["network", "parameters, M", "deployed, M", "multiply-adds, G"]
    shape = (args.batch_size, args.in_chans, *args.roi_size)
    line = f"Input {' x '.join(map(str, shape))}, {args.out_chans} classes; "
    if args.no_step:
        line += f"torch {machine['torch']}, {machine['date']}"
    else:
        header += ["step, s", "peak memory, GB"]
        line += f"step: median of {args.steps}, autocast {' or '.join(sorted({row['autocast'] for row in rows}))}, "
        line += name_machine(machine)
    table = [cells(row) for row in rows]
    markdown = tabulate(table, header, "pipe", colalign=("left",), colglobalalign="right", disable_numparse=True)
    return f"{line}\n\n{markdown}"


def cells(row: Row) -> list[str]:
    """Format a row's values in the units of the table."""
    millions = [f"{row[key] / 1e6:.2f}" for key in ("parameters", "deployed_parameters")]
    counted = [row["network"], *millions, f"{row['multiply_adds'] / 1e9:.2f}"]
    if "reason" not in row:
        return counted
    if row["reason"] is not None:
        return [*counted, row["reason"].partition(":")[0], "-"]
    return [*counted, f"{row['step_seconds']:.3g}", f"{row['peak_bytes'] / 1e9:.2f}"]


def check_update(args: argparse.Namespace, overrides: dict[str, Any], device: torch.device) -> None:
    """Check that the rows can go into the table of docs/networks.md.

    Raises:
        InputError: other settings than those of its rows, or the table cannot be rewritten.
    """
    for name, expected in PAGE_SETTINGS.items():
        if (found := getattr(args, name)) != expected:
            raise InputError(f"--{name}: found {format_value(found)}, expected {format_value(expected)} with --update")
    if overrides:
        flag = next(name for name in (*NETWORK_FLAGS, "network_args") if getattr(args, name))
        raise InputError(f"--{flag}: found it with --update, expected networks with their default arguments")
    if device.type != "cpu" and not args.no_step:
        raise InputError(f"--gpu: found {args.gpu}, expected cpu with --update")
    updated_page(read_rows())


def read_rows() -> list[Row]:
    """Read the stored rows of the table of docs/networks.md."""
    rows: list[Row] = json.loads(RESULTS.read_text())["rows"]
    return rows


def update(measured: Sequence[Row]) -> None:
    """Add or replace rows in the results, and write the table of docs/networks.md from them."""
    rows = merge_rows(read_rows(), measured)
    write_text(RESULTS, json.dumps({**PAGE_SETTINGS, "rows": rows}, indent=2) + "\n")
    write_text(PAGE, updated_page(rows))
    print(f"\nwrote {RESULTS} and {PAGE}")


def merge_rows(stored: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """Merge rows in the order of ``NETWORKS``, without those of networks that no longer exist.

    A measured row replaces the stored one, except that a row without a step leaves a stored one with the same counts.
    """
    old, new = ({row["network"]: row for row in rows} for rows in (stored, measured))
    for name in old.keys() & new.keys():
        if "step_seconds" not in new[name] and all(old[name][key] == new[name][key] for key in COUNTS):
            del new[name]
    rows = {**old, **new}
    return [rows[name] for name in NETWORKS if name in rows]


def updated_page(rows: Sequence[Row]) -> str:
    """Return docs/networks.md with the table of these rows; InputError if a marker is missing."""
    return replace_section(PAGE, BEGIN, page_table(rows), END)


def page_table(rows: Sequence[Row]) -> str:
    """Format the table of docs/networks.md, followed by a line about the machines that measured its steps."""
    lines = [f"| {' | '.join(PAGE_HEADER)} |", f"|{'---|' * len(PAGE_HEADER)}"]
    machines: dict[str, list[str]] = {}
    for row in rows:
        name, *numbers = cells(row)
        if "machine" in row:
            how = f"{name_machine(row['machine'])}, autocast {row['autocast']}, median of {row['steps']}"
            machines.setdefault(how, []).append(f"`{name}`")
        else:
            numbers += ["not measured", "-"]
        lines.append(f"| {' | '.join([f'`{name}`', *SYSTEMS.get(name, ('', '')), *numbers])} |")
    return "\n".join([*lines, "", f"Steps: {describe_machines(machines)}.", ""])


def describe_machines(machines: dict[str, list[str]]) -> str:
    """Format which machine measured which networks; those of the most common machine are not listed."""
    most_common, *others = sorted(machines, key=lambda how: -len(machines[how])) or ["not measured"]
    return "; ".join([most_common, *(f"{', '.join(machines[how])}: {how}" for how in others)])


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

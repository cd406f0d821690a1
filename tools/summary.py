"""What the networks cost: parameters, multiply-adds, time and peak memory of a training step; one row a network.

    python -m tools.summary --json summary.json
    python -m tools.summary --networks REP3D SwinUNETR --roi_size 128 128 128 --gpu 0
    python -m tools.summary --no_step

Counted, on tensors without data: parameters as trained and as deployed (``build_network(..., deploy=True)``), and the
multiply-adds of the deployed network's forward. Those are the multiply-adds of convolutions and matrix products,
attention's included, and no others. A convolution has one for each output voxel, tap and channel pair that it joins,
taps on zero padding included, as the direct algorithm would on a padded image, whatever algorithm runs.

Measured: forward, DiceCE loss, backward and AdamW update on random data, the median of ``--steps`` after one that warms
up. The peak memory includes that one. On a GPU it is what PyTorch had allocated for tensors; on a CPU (Linux only) the
resident memory of a process that did nothing else, with Python and the libraries, about 0.5 GB. GB are 10^9 bytes.

Each network is measured in a process of its own. One that cannot fit, or runs out of memory, has a row that says so.
"""

import argparse
import json
import os
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
from benchmarks.report import describe_machine
from engine.runtime.arguments import AMP_CHOICES, number, odd
from engine.runtime.devices import choose_device, choose_precision
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import write_text
from engine.weights.checkpoints import NetworkConfig
from networks import NETWORKS
from networks.base import SegmentationNetwork
from networks.res_enc_unet import ResEncUNet

BYTES_A_PARAMETER = 4 * 4  # weight, gradient and AdamW's two moments, float32


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(
        "summary", description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    what = parser.add_argument_group("networks and input")
    what.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME", help="rows (all)")
    what.add_argument("--kernel_size", type=odd, help="side of the large kernels, voxels (networks' own)")
    what.add_argument("--in_chans", type=number(int, 1), default=1, help="input channels")
    what.add_argument("--out_chans", type=number(int, 2), default=16, help="classes, background included")
    what.add_argument("--roi_size", nargs=3, type=number(int, 1), default=[96, 96, 96], help="input, voxels")
    what.add_argument("--batch_size", type=number(int, 1), default=1, help="samples of the input")

    step = parser.add_argument_group("step")
    step.add_argument("--gpu", default="0", help="CUDA device number, or cpu")
    step.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="autocast precision")
    step.add_argument("--steps", type=number(int, 1), default=3, help="timed training steps, of which the median")
    step.add_argument("--no_step", action="store_true", help="count only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Count, measure, print the table, write the JSON."""
    if args.json and (os.path.isdir(args.json) or not os.access(args.json.parent, os.W_OK)):
        raise InputError(f"--json: {args.json} cannot be written, expected a file in a folder that is there")
    with redirect_stdout(sys.stderr):  # the table alone goes to stdout
        device = choose_device(args.gpu)
    with tqdm(args.networks or available_networks(), "counting") as names:
        counted = [count(name, args, device) for name in names]
    # Every mistake has been found by now: what follows may take long.
    for row, step in tqdm(counted, "measuring", disable=args.no_step):
        if step is not None:
            row.update(measure(step, row["parameters"], args.steps))

    machine = describe_machine(device)
    results = {
        "versions": {"torch": machine.pop("torch"), "monai": monai.__version__},
        **machine,
        "input": [args.batch_size, args.in_chans, *args.roi_size],
        "classes": args.out_chans,
        "steps": 0 if args.no_step else args.steps,
        "rows": [row for row, _ in counted],
    }
    print(report(results))
    if args.json:
        write_text(args.json, json.dumps(results, indent=2) + "\n")


def available_networks() -> list[str]:
    """All of them, without ResEncUNet where its package is not installed."""
    try:
        with torch.device("meta"):
            ResEncUNet(feat_size=(1, 1), n_blocks=(1, 1))
    except ValueError as error:
        print(f"ResEncUNet is left out: {error}", file=sys.stderr)
        return [name for name in NETWORKS if name != "ResEncUNet"]
    return list(NETWORKS)


def build_on_meta(config: NetworkConfig, deploy: bool = False) -> SegmentationNetwork:
    """The network without data, in evaluation mode; InputError where its arguments do not make one."""
    with torch.device("meta"):
        return config.build(deploy).eval()


def count(name: str, args: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], Step | None]:
    """A row with the network's parameters and the deployed one's multiply-adds, and the step to measure, if any."""
    overrides = {} if args.kernel_size is None else {"kernel_size": args.kernel_size}
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
    """Multiply-adds of one forward: of convolutions, each counted as direct and with all its taps, and matrix products.

    Args:
        network: on the meta device.
        shape: (N, C, D, H, W) of the input.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(tuple(shape), device="meta"))
    return counter.get_total_flops() // 2  # it takes a multiply-add for two operations


def find_precision(
    amp: str, device: torch.device, network: SegmentationNetwork, config: NetworkConfig
) -> torch.dtype | None:
    """The autocast type of ``--amp``; InputError naming the network where it cannot run in it."""
    try:
        return choose_precision(amp, device, config.roi_size, network.input_sizes)
    except InputError as mistake:
        raise InputError(f"--networks {config.network}: {mistake}") from mistake


def measure(step: Step, parameters: int, repeats: int) -> dict[str, Any]:
    """Median seconds and peak bytes of a step in a process of its own; None, and the reason, where there are none."""
    memory, needed = available_memory(step.device), BYTES_A_PARAMETER * parameters
    if needed > memory:
        reason = f"weights, gradients and AdamW state take {needed / 1e9:.1f} GB, {memory / 1e9:.1f} GB are available"
        found = {**UNMEASURED, "reason": f"{OUT_OF_MEMORY}: {reason}"}
    else:
        found = measure_step(step, repeats, own_process=True)
    return {
        "autocast": step.autocast,
        "step_seconds": found["step_s"],
        "peak_bytes": found["peak_bytes"],
        "reason": found["reason"],
    }


def report(results: dict[str, Any]) -> str:
    """The input and the machine in a line, and the table in Markdown."""
    header = ["network", "parameters, M", "deployed, M", "multiply-adds, G"]
    line = f"Input {' x '.join(map(str, results['input']))}, {results['classes']} classes; "
    if results["steps"]:
        header += ["step, s", "peak memory, GB"]
        autocast = " or ".join(sorted({row["autocast"] for row in results["rows"]}))
        line += f"step: median of {results['steps']}, autocast {autocast}, {results['device']}, "
        line += f"{results['threads']} CPU threads; "
    line += f"torch {results['versions']['torch']}, {results['date']}"
    rows = [cells(row) for row in results["rows"]]
    markdown = tabulate(rows, header, "pipe", colalign=("left",), colglobalalign="right", disable_numparse=True)
    return f"{line}\n\n{markdown}"


def cells(row: dict[str, Any]) -> list[str]:
    """A row's values in the table's units."""
    millions = [f"{row[key] / 1e6:.2f}" for key in ("parameters", "deployed_parameters")]
    counted = [row["network"], *millions, f"{row['multiply_adds'] / 1e9:.2f}"]
    if "reason" not in row:
        return counted
    if row["reason"] is not None:
        return [*counted, row["reason"].partition(":")[0], "-"]
    return [*counted, f"{row['step_seconds']:.3g}", f"{row['peak_bytes'] / 1e9:.2f}"]


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

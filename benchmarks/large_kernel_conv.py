"""Cost of a large depthwise convolution on a CPU: native F.conv3d, the FFT path, and Rep3D's choice.

    python -m benchmarks.large_kernel_conv [--kernel_size 21] [--skip_native]

Each is timed at the four stages of a 96^3 crop, with batch size 1 in float32 (``benchmarks.gpu`` measures a GPU):

- native: F.conv3d;
- fft: the FFT path, which keeps its spectra for the backward pass;
- auto: the path that Rep3D chooses.

After one warm-up run the median of ``--repeats`` runs is reported, except for the backward pass of native, which runs
once, without warm-up: stage 1 takes about two minutes with two cores. "kept" are the bytes that the forward pass keeps
for the backward pass. The forward pass of a deployed layer is timed with and without the cached spectrum of its kernel.

Errors are the largest absolute error over the largest absolute value of a float64 reference: the float64 FFT, which is
itself compared with float64 F.conv3d at the last stage, where that fits in memory (``MAX_CHECKED_MULTIPLY_ADDS``).
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import describe_machine, format_table, name_machine, publish
from engine.runtime.arguments import number, odd
from engine.runtime.errors import OneLineParser, run
from engine.runtime.files import make_output_folder
from networks.large_kernel_conv import KernelSpectrum, large_kernel_conv3d

STAGES = ((48, 48), (96, 24), (192, 12), (384, 6))  # channels, side
MAX_CHECKED_MULTIPLY_ADDS = 1e9  # gradients of float64 F.conv3d unfold the input: 6 GB at stage 4, 24 GB at stage 3
PASSES = ("out", "dx", "dw")
Convolve = Callable[[Tensor, Tensor], Tensor]


def native(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve by PyTorch's own function."""
    return F.conv3d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])


def fft(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve by FFT, with all spectra kept."""
    return large_kernel_conv3d(x, weight, method="fft", budget=sys.maxsize)


METHODS: dict[str, Convolve] = {"native": native, "fft": fft, "auto": large_kernel_conv3d}


def time_passes(
    convolve: Convolve, tensors: Sequence[Tensor], repeats: int = 0, backwards: int = 1
) -> tuple[float, float, tuple[Tensor, ...]]:
    """Measure the median seconds of forward and backward pass; also returns (out, dx, dw).

    Args:
        convolve: method, a function of input and kernel.
        tensors: input (1, C, S, S, S), kernel (C, 1, K, K, K) and gradient of the output.
        repeats: runs after the first.
        backwards: number of runs, the last of the ``repeats + 1``, that have a backward pass. The first run of a pass
            is a warm-up and does not count, unless it is the only one.
    """

    def timed(run: Callable[[], Any]) -> tuple[float, Any]:
        start = time.perf_counter()
        result = run()
        return time.perf_counter() - start, result

    x, weight = (tensor.detach().requires_grad_() for tensor in tensors[:2])
    forward_seconds: list[float] = []
    backward_seconds: list[float] = []
    for remaining in reversed(range(repeats + 1)):
        seconds, out = timed(lambda: convolve(x, weight))
        forward_seconds.append(seconds)
        if remaining < backwards:
            seconds, gradients = timed(lambda out=out: torch.autograd.grad(out, (x, weight), tensors[2]))  # type: ignore[misc]
            backward_seconds.append(seconds)
    forward, backward = (median(times[1:] or times) for times in (forward_seconds, backward_seconds))
    return forward, backward, (out.detach(), *gradients)


def kept_bytes(convolve: Convolve, tensors: Sequence[Tensor]) -> int:
    """Count the bytes, those of input and kernel included, that autograd keeps for the backward pass."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = convolve(*(tensor.detach().requires_grad_() for tensor in tensors[:2]))
    del out  # until here it kept the storages alive, so that no address was used twice
    return sum(storages.values())


@torch.inference_mode()
def time_deployed(x: Tensor, weight: Tensor, repeats: int) -> dict[str, float]:
    """Measure the median seconds of a forward pass with and without the cached spectrum of the kernel."""
    known = KernelSpectrum()
    seconds: dict[str, list[float]] = {"known_s": [], "unknown_s": []}
    for _ in range(1 + repeats):
        for name, spectrum in (("known_s", known), ("unknown_s", None)):
            start = time.perf_counter()
            large_kernel_conv3d(x, weight, known=spectrum)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times[1:]) for name, times in seconds.items()}


def relative_errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """Compute the largest absolute error over the largest expected absolute value, for output, dx and dw."""
    return {
        name: ((ours.double() - theirs).abs().max() / theirs.abs().max()).item()
        for name, ours, theirs in zip(PASSES, found, expected, strict=True)
    }


def measure_stage(
    channels: int, side: int, kernel_size: int, repeats: int, skip_native: bool, seed: int
) -> dict[str, Any]:
    """Measure seconds and errors of each method at one stage, as one row of the results."""
    generator = torch.Generator().manual_seed(seed)
    grid = (1, channels, *[side] * 3)
    shapes = grid, (channels, 1, *[kernel_size] * 3), grid
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    doubles = [tensor.double() for tensor in tensors]
    *_, reference = time_passes(fft, doubles)
    row: dict[str, Any] = {"channels": channels, "side": side, "reference_error": None}
    if channels * side**3 * kernel_size**3 <= MAX_CHECKED_MULTIPLY_ADDS:
        *_, direct = time_passes(native, doubles)
        row["reference_error"] = relative_errors(reference, direct)

    for name, convolve in METHODS.items():
        if name == "native" and skip_native:
            continue
        backwards = 1 if name == "native" else repeats + 1
        forward, backward, found = time_passes(convolve, tensors, repeats, backwards)
        row[name] = {
            "forward_s": forward,
            "backward_s": backward,
            "kept_bytes": kept_bytes(convolve, tensors),
            "errors": relative_errors(found, reference),
        }
    row["deployed"] = time_deployed(tensors[0], tensors[1], repeats)
    if not skip_native:
        row["native_over_auto"] = total_seconds(row["native"]) / total_seconds(row["auto"])
    return row


def total_seconds(timing: dict[str, Any]) -> float:
    """Add up forward and backward pass."""
    return timing["forward_s"] + timing["backward_s"]


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum seconds and bytes over the stages, for each method that was measured."""
    summed: dict[str, Any] = {
        name: {key: sum(row[name][key] for row in rows) for key in ("forward_s", "backward_s", "kept_bytes")}
        for name in METHODS
        if name in rows[0]
    }
    summed["deployed"] = {key: sum(row["deployed"][key] for row in rows) for key in rows[0]["deployed"]}
    if "native" in summed:
        summed["native_over_auto"] = total_seconds(summed["native"]) / total_seconds(summed["auto"])
    return summed


def report(results: dict[str, Any]) -> str:
    """Format the results as text: the machine, a table of the methods, a table of the layers."""
    stages = {f"{row['channels']}, {row['side']}^3": row for row in results["rows"]} | {"total": results["totals"]}
    names = [name for name in METHODS if name in results["totals"]]
    methods, layers = [], []
    for label, row in stages.items():
        for name in names:
            found = row[name]
            errors = [f"{found['errors'][key]:.1e}" if "errors" in found else "-" for key in PASSES]
            seconds = [f"{found[key]:.4f}" for key in ("forward_s", "backward_s")]
            methods.append([label, name, *seconds, f"{found['kept_bytes'] / 1e6:.1f}", *errors])
        ratio = f"{row['native_over_auto']:.1f}" if "native" in names else "-"
        check = row.get("reference_error")
        known, unknown = (f"{row['deployed'][key]:.4f}" for key in ("known_s", "unknown_s"))
        layers.append([label, ratio, known, unknown, f"{max(check.values()):.1e}" if check else "-"])

    native_runs = "backward pass once, without warm-up" if "native" in names else "skipped"
    return "\n".join(
        [
            f"{name_machine(results)}; kernel {results['kernel_size']}^3, batch 1, float32",
            f"Median of {results['repeats']} runs after one warm-up; native: "
            f"{native_runs}. Errors are relative to the float64 FFT.\n",
            format_table(
                ["stage", "method", "fwd s", "bwd s", "kept MB", *(f"{key} error" for key in PASSES)], methods
            ),
            "\nDeployed: forward pass of auto with and without the cached spectrum of the kernel. Last column: error",
            "of the float64 FFT itself, relative to float64 F.conv3d where that is cheap.\n",
            format_table(["stage", "native/auto", "deployed, known s", "unknown s", "fft64 - direct64"], layers),
        ]
    )


def stage(text: str) -> tuple[int, int]:
    """Convert text to channels and side of a stage."""
    channels, side = (int(part) for part in text.split(","))
    if channels < 1 or side < 1:
        raise ValueError(text)
    return channels, side


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="benchmarks.large_kernel_conv", description=__doc__)
    what = parser.add_argument_group("convolutions")
    what.add_argument("--kernel_size", type=odd, default=21, metavar="SIDE", help="side of the kernel, voxels")
    stages = "shapes to measure (default: the four of a 96^3 crop)"
    what.add_argument("--stages", type=stage, nargs="+", default=STAGES, metavar="CHANNELS,SIDE", help=stages)
    what.add_argument("--skip_native", action="store_true", help="do not time F.conv3d")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the tensors")
    measurement = parser.add_argument_group("measurement")
    measurement.add_argument("--repeats", type=number(int, 1), default=3, metavar="N", help="timed runs")
    output = Path("benchmarks/results/large_kernel_conv_cpu.json")
    measurement.add_argument("--output", type=Path, default=output, metavar="FILE", help="JSON file to write")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the tables, write the JSON file, and return its content."""
    make_output_folder(args.output.parent)
    rows = []
    for channels, side in args.stages:
        print(f"measuring {channels} channels, {side}^3 ...", file=sys.stderr, flush=True)
        rows.append(measure_stage(channels, side, args.kernel_size, args.repeats, args.skip_native, args.seed))
    results = {
        **describe_machine(torch.device("cpu")),
        "kernel_size": args.kernel_size,
        "repeats": args.repeats,
        "seed": args.seed,
        "rows": rows,
        "totals": totals(rows),
    }
    return publish(results, report(results), args.output)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

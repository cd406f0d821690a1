"""Cost of a training step of REP3D on a CPU: with kernel 21, with kernel 3, and by the published recipe.

    python -m benchmarks.training_step [--roi_size 96 96 96] [--published] [--checkpointing] [--compile]

A step is forward pass, DiceCE loss, backward pass and AdamW update on one random crop. Kernels 21 and 3 run with this
project's settings (layout, precision, optimiser, memory). Each has a process of its own, and the processes take turns,
so that other load on the machine affects both. After the warm-up runs, the median of ``--repeats`` runs is reported.
The published recipe is native depthwise convolution with kernel 21 in float32, contiguous layout, AdamW and no further
optimisation; it runs once, without warm-up, which took eleven minutes on two cores. Peak memory is the resident memory
of the process, libraries included.

``benchmarks.gpu`` measures the same on a GPU.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measure import NotMeasured, Step, StepProcess, available_memory
from benchmarks.report import describe_machine, format_table, name_machine, publish
from engine.runtime.arguments import AMP_CHOICES, number, odd
from engine.runtime.devices import choose_precision
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import make_output_folder
from engine.weights.checkpoints import NetworkConfig
from networks.base import InputSizes

WARM_UPS = 2  # the first run of a process touches new memory, and the second may do so too
SMALL_KERNEL = 3
PUBLISHED = "published"
Runs = list[tuple[float, int]]  # seconds of a step, peak bytes so far


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="benchmarks.training_step", description=__doc__)
    what = parser.add_argument_group("network and input")
    what.add_argument("--kernel_size", type=odd, default=21, metavar="SIDE", help="side of the large kernels, voxels")
    widths, channels, names = [48, 96, 192, 384], "channels of the four stages", ("C1", "C2", "C3", "C4")
    what.add_argument("--feat_size", nargs=4, type=number(int, 1), default=widths, metavar=names, help=channels)
    side, size = number(int, 1), "size of the crop, voxels"
    what.add_argument("--roi_size", nargs=3, type=side, default=[96, 96, 96], metavar=("D", "H", "W"), help=size)
    what.add_argument("--out_chans", type=number(int, 2), default=16, metavar="N", help="classes, background included")
    variants = parser.add_argument_group("further variants")
    variants.add_argument("--published", action="store_true", help="the published recipe")
    variants.add_argument("--checkpointing", action="store_true", help="the large kernel with checkpointing")
    variants.add_argument("--compile", action="store_true", help="the large kernel under torch.compile")
    measurement = parser.add_argument_group("measurement")
    measurement.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="precision of autocast")
    measurement.add_argument("--repeats", type=number(int, 1), default=3, metavar="N", help="timed steps")
    output = "JSON file to write (default: benchmarks/results/training_step[_published]_cpu.json)"
    measurement.add_argument("--output", type=Path, metavar="FILE", help=output)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, write the JSON file, and return its content."""
    device = torch.device("cpu")
    name = f"training_step{'_published' if args.published else ''}_cpu.json"
    output = args.output or Path("benchmarks/results") / name
    make_output_folder(output.parent)
    precision = choose_precision(args.amp, device, args.roi_size, InputSizes(16))

    def make_step(kernel_size: int) -> Step:
        overrides = {"feat_size": tuple(args.feat_size), "kernel_size": kernel_size}
        config = NetworkConfig("REP3D", 1, args.out_chans, tuple(args.roi_size), overrides)
        return Step(config, 1, device, precision)

    large = make_step(args.kernel_size)
    ours = {f"kernel {args.kernel_size}": large, f"kernel {SMALL_KERNEL}": make_step(SMALL_KERNEL)}
    if args.checkpointing:
        ours["checkpointing"] = replace(large, checkpointing=True)
    if args.compile:
        ours["compiled"] = replace(large, compiled=True)
    rows = [summarise(name, ours[name], runs[WARM_UPS:]) for name, runs in take_turns(ours, args.repeats).items()]
    if args.published:
        published = replace(large, precision=None, published=True)
        rows.append(summarise(PUBLISHED, published, take_turns({PUBLISHED: published}, 1, 0)[PUBLISHED]))
    results = {
        **describe_machine(device),
        "kernel_size": args.kernel_size,
        "feat_size": args.feat_size,
        "roi_size": args.roi_size,
        "classes": args.out_chans,
        "repeats": args.repeats,
        "rows": rows,
        **ratios(rows),
    }
    return publish(results, report(results), output)


def take_turns(steps: dict[str, Step], repeats: int, warm_ups: int = WARM_UPS) -> dict[str, Runs]:
    """Run each step ``warm_ups + repeats`` times in a process of its own, one step after the other in every round.

    Raises:
        InputError: a step cannot be measured.
    """
    runs: dict[str, Runs] = {name: [] for name in steps}
    with ExitStack() as stack:
        memory = {name: available_memory(step.device) // len(steps) for name, step in steps.items()}
        processes = {name: stack.enter_context(StepProcess(step, memory[name])) for name, step in steps.items()}
        for turn in range(warm_ups + repeats):
            for name, process in processes.items():
                print(f"{name}: step {turn + 1} of {warm_ups + repeats} ...", file=sys.stderr, flush=True)
                try:
                    runs[name].append(process.run())
                except NotMeasured as reason:
                    raise InputError(f"{name}: {reason}, expected a smaller --roi_size or --feat_size") from reason
    return runs


def summarise(name: str, step: Step, runs: Runs) -> dict[str, Any]:
    """Summarise the runs of a step in a row: all seconds, their median, and the peak."""
    seconds = [second for second, _ in runs]
    return {
        "name": name,
        "autocast": step.autocast,
        "step_s": median(seconds),
        "steps_s": seconds,
        "peak_bytes": runs[-1][1],
    }


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Compute the ratios of the large kernel to the small one, and of the published recipe to the large kernel."""
    (large, small), last = (row["step_s"] for row in rows[:2]), rows[-1]
    found = {"large_over_small": large / small}
    if last["name"] == PUBLISHED:
        found["published_over_large"] = last["step_s"] / large
    return found


def report(results: dict[str, Any]) -> str:
    """Format the results as text: the machine, a table of the variants, the two ratios."""
    table = [
        [
            row["name"],
            row["autocast"],
            f"{row['step_s']:.3g}",
            str(len(row["steps_s"])),
            f"{row['peak_bytes'] / 1e9:.2f}",
        ]
        for row in results["rows"]
    ]
    over_small = f"kernel {results['kernel_size']} over kernel {SMALL_KERNEL}: {results['large_over_small']:.2f}"
    lines = [
        f"{name_machine(results)}; REP3D, crop of {results['roi_size']}, {results['classes']} classes\n",
        format_table(["variant", "autocast", "step, s", "runs", "peak memory, GB"], table),
        f"\n{over_small} (target: 1.10)",
    ]
    if "published_over_large" in results:
        over = f"published over kernel {results['kernel_size']}: {results['published_over_large']:.1f}"
        lines.append(f"{over} (target on a CPU: 15)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

"""Measure all claims about GPUs within a time budget, the most important first.

    python -m benchmarks.gpu --output DIR [--data HIPPOCAMPUS] [--budget_s 480] [--steps machine convolution] [--gpu 0]

Each step runs in a process of its own with its own share of the time, and writes DIR/<step>_cuda.json row by row. A
step that fails, hangs or runs out of memory reports it there, and the other steps go on. At the end a table is printed.
``--gpu cpu`` is the rehearsal: the same steps at sizes that take seconds.

docs/gpu.md explains how to run it on a machine without network, and has the results.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench, results_path
from benchmarks.gpu.report import table
from benchmarks.gpu.schedule import STEPS, run_steps
from benchmarks.report import describe_machine
from engine.runtime.arguments import number
from engine.runtime.errors import CasesFailed, InputError, OneLineParser, run
from engine.runtime.files import make_output_folder, write_text

DAY_S = 86400


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", required=True, help="folder for the JSON files and table.txt"
    )
    data = "dataset folder of MSD hippocampus; without it the accuracy step is skipped"
    parser.add_argument("--data", type=Path, metavar="DIR", help=data)
    budget = number(float, 1, DAY_S)
    parser.add_argument("--budget_s", type=budget, default=480, metavar="SECONDS", help="time for all steps together")
    steps = f"steps to run, some of {', '.join(STEPS)} (default: all)"
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=steps)
    parser.add_argument("--gpu", default="0", metavar="DEVICE", help="number of a CUDA device, or cpu to rehearse")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Run the steps, then print and write the table."""
    check(args)
    names = [name for name in STEPS if name in args.steps]
    make_output_folder(args.output)
    device = torch.device("cpu") if args.gpu == "cpu" else torch.device("cuda", int(args.gpu))
    for name in names:
        if (path := results_path(args.output, name, device.type)).exists():
            raise InputError(f"--output: found {path}, expected a folder without results of these steps")
    bench = Bench(
        step="",
        gpu=args.gpu,
        machine=describe_machine(device),
        output=args.output.resolve(),
        scratch=args.output,
        data=args.data and args.data.resolve(),
        seconds=args.budget_s,
    )
    failures = run_steps(names, bench)
    text = "\n".join(table(names, args.output, device.type))
    print(text)
    write_text(args.output / "table.txt", text + "\n")
    if failures:
        raise CasesFailed("\n".join(failures))


def check(args: argparse.Namespace) -> None:
    """Raise InputError for a device or a folder that does not exist."""
    if args.gpu != "cpu":
        if not args.gpu.isdecimal():
            raise InputError(f"--gpu: found {args.gpu!r}, expected cpu or the number of a CUDA device")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(args.gpu) >= count:
            expected = f"a number below {count}, or cpu" if count else "cpu: torch sees no CUDA device"
            raise InputError(f"--gpu: found {args.gpu}, expected {expected}")
    if args.data is not None and not os.path.isdir(args.data / "imagesTr"):
        raise InputError(f"--data: found no {args.data / 'imagesTr'}, expected a dataset folder of MSD hippocampus")


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

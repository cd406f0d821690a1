"""Seconds and memory of every command on a thousand small volumes: a part that is not linear shows in the last column.

    python -m benchmarks.many_cases [--cases 250 500 1000] [--folder /fast/disk]

Writes volumes of 28 x 30 x 26 voxels, as many training as test cases and 8 validation cases, and runs the commands that
a user runs, with a network that costs next to nothing: the check of headers and of voxels; the start of a training run
to its first step and validation, without a cache, filling --cache_dir, and with --cache_dir filled; prediction of all
test cases, and the same command again. Each runs as a process of its own, for each number of cases.

The growth is the CPU time that the last cases added over that of those before, each per case: 1 if it is linear, and 2
for 250, 500 and 1000 cases if it is quadratic. Where they added less than half a second it is noise, and not printed.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from benchmarks.processes import PeakMemory
from benchmarks.report import describe_machine, format_table, name_machine, publish
from engine.runtime.arguments import number
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import make_output_folder

ROOT = Path(__file__).parents[1]
SHAPE, VALIDATION_CASES = (28, 30, 26), 8
DESCRIPTION = {
    "name": "boxes",
    "labels": {"background": 0, "box": 1},
    "spacing": [1, 1, 1],
    "intensity": {"zscore": True},
}
SMALL = ["--network", "REP3D_NONE", "--feat_size", *"4888", "--kernel_size", "3", "--roi_size", "32", "32", "32"]
LEAST_S = 0.5  # shorter differences are noise
CHECK = ["-m", "tools.check_data", "--root", "data", "--dataset", "boxes.json"]
TRAIN = [
    "main_train.py",
    "--root",
    "data",
    "--dataset",
    "boxes.json",
    *SMALL,
    "--gpu",
    "cpu",
    "--max_iter",
    "1",
    "--output",
]
PREDICT = ["test_seg.py", "--root", "data", "--trained_weights", "run/best_metric_model.pth", "--gpu", "cpu"]
# Run in this order: some parts need the output of earlier ones.
PARTS = {
    "check, headers": [*CHECK, "--headers_only"],
    "check, voxels": CHECK,
    "training start, no cache": [*TRAIN, "run", "--cache_rate", "0"],
    "training start, cache filled by it": [*TRAIN, "run_filling", "--cache_dir", "cache"],
    "training start, cache filled before": [*TRAIN, "run_filled", "--cache_dir", "cache"],
    "prediction": [*PREDICT, "--output", "predictions"],
    "prediction, again": [*PREDICT, "--output", "predictions"],
}


def write_cases(folder: Path, cases: int, seed: int) -> None:
    """Write a dataset: ``cases`` training and test cases, and a description."""
    rng = np.random.default_rng(seed)
    (folder / "boxes.json").write_text(json.dumps(DESCRIPTION))
    for split, count in (("Tr", cases), ("Val", VALIDATION_CASES), ("Ts", cases)):
        images, labels = (folder / "data" / f"{kind}{split}" for kind in ("images", "labels"))
        images.mkdir(parents=True)
        labels.mkdir()
        for number_of_case in range(count):
            image, label = rng.normal(100, 20, SHAPE).astype(np.int16), np.zeros(SHAPE, np.uint8)
            label[tuple(slice(start, start + 8) for start in rng.integers(2, 18, 3))] = 1
            image[label == 1] += 60
            name = f"{split}_{number_of_case:04d}.nii.gz"
            nib.save(nib.Nifti1Image(image, np.eye(4)), images / name)
            nib.save(nib.Nifti1Image(label, np.eye(4)), labels / name)


def measure_parts(folder: Path) -> dict[str, dict[str, float]]:
    """Run every part in a dataset's folder; return its seconds, the CPU seconds of its processes, and peak bytes."""
    for name in ("main_train.py", "test_seg.py"):
        (folder / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = {}
    for part, command in PARTS.items():
        print(f"measuring {part} ...", file=sys.stderr, flush=True)
        start, cpu_start = time.perf_counter(), children_cpu_s()
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        with PeakMemory(process.pid) as peak:
            _, errors = process.communicate()
        seconds = time.perf_counter() - start
        if process.returncode:
            last = (errors.decode(errors="replace").splitlines() or [""])[-1]
            raise InputError(f"{part}: found exit status {process.returncode} ({last}), expected 0")
        found[part] = {"seconds": seconds, "cpu_s": children_cpu_s() - cpu_start, "peak_bytes": peak.bytes}
    return found


def children_cpu_s() -> float:
    """Sum the CPU seconds of all processes that this one and its children have started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def growth(cases: Sequence[int], cpu_s: Sequence[float]) -> float | None:
    """Divide the CPU seconds per case that the last cases added by those that the cases before them added.

    Returns: 1 for linear times; None if an added time is too short to tell.
    """
    first, last = cpu_s[-2] - cpu_s[0], cpu_s[-1] - cpu_s[-2]
    if min(first, last) < LEAST_S:
        return None
    return last / (cases[-1] - cases[-2]) / (first / (cases[-2] - cases[0]))


def columns(cases: Sequence[int]) -> list[str]:
    """Name the columns of ``rows``."""
    return ["part", *(f"{count} cases, s" for count in cases), "ms per case", "peak, GB", "growth"]


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Format one row per part."""
    cases = results["cases"]
    return [
        [
            part,
            *(f"{seconds:.1f}" for seconds in found["seconds"]),
            f"{1e3 * (found['seconds'][-1] - found['seconds'][0]) / (cases[-1] - cases[0]):.1f}",
            f"{found['peak_bytes'][-1] / 1e9:.2f}",
            "" if found["growth"] is None else f"{found['growth']:.2f}",
        ]
        for part, found in results["parts"].items()
    ]


def report(results: dict[str, Any]) -> str:
    """Format the results as text: the machine and a table."""
    shape, load = " x ".join(map(str, SHAPE)), f"load average before {results['load_average_before']:.1f}"
    table = format_table(columns(results["cases"]), rows(results))
    return f"{name_machine(results)}, {load}\nvolumes of {shape}\n\n{table}"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="benchmarks.many_cases", description=__doc__)
    counts = "three or more numbers of cases, rising"
    parser.add_argument("--cases", type=number(int, 1), nargs="+", default=[250, 500, 1000], metavar="N", help=counts)
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="parent of temporary folders (default: the system's)"
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, metavar="N", help="seed of the volumes")
    output = Path("benchmarks/results/many_cases_cpu.json")
    parser.add_argument("--output", type=Path, default=output, metavar="FILE", help="JSON file to write")
    args = parser.parse_args(arguments)
    if len(args.cases) < 3 or args.cases != sorted(set(args.cases)):
        parser.error(f"--cases: found {' '.join(map(str, args.cases))}, expected {counts}")
    return args


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all parts for each number of cases, print the table, write the JSON file, and return its content."""
    make_output_folder(args.output.parent)
    load_average = os.getloadavg()[0]
    measured = []
    for count in args.cases:
        folder = Path(tempfile.mkdtemp(dir=args.folder))
        try:
            print(f"writing {count} cases to {folder} ...", file=sys.stderr, flush=True)
            write_cases(folder, count, args.seed)
            measured.append(measure_parts(folder))
        finally:
            shutil.rmtree(folder)
    parts = {}
    for part in PARTS:
        columns = {name: [found[part][name] for found in measured] for name in ("seconds", "cpu_s", "peak_bytes")}
        parts[part] = {**columns, "growth": growth(args.cases, columns["cpu_s"])}
    results = {
        **describe_machine(torch.device("cpu")),
        "load_average_before": load_average,
        "cases": args.cases,
        "parts": parts,
    }
    return publish(results, report(results), args.output)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

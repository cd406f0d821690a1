"""Measure what Gaussian windows, mirroring, largest components and an ensemble add to the Dice, and what they cost.

    python -m experiments.test_time.run --root ../shared/data/msd_hippocampus --output runs/test_time \
        --trained_weights runs/hippocampus/best_metric_model.pth runs/hippocampus_1/best_metric_model.pth

Each way is test_seg.py with a flag, in this process. The ways take turns, --repeats times, so that other work on the
machine affects all of them; seconds are medians, loading the weights and scoring included. Dice is compared case by
case with the first network alone. Writes results.json and prints the table of README.md.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import test_seg
from benchmarks.report import describe_machine, name_machine
from engine.evaluation.statistics import compare
from engine.runtime.arguments import number
from engine.runtime.devices import choose_device
from engine.runtime.errors import OneLineParser, run
from engine.runtime.files import make_output_folder, write_text
from engine.weights.load_network import load_trained

ALONE = "one network"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("test_time", description=__doc__.splitlines()[0])
    parser.add_argument("--root", metavar="DIR", required=True, help="dataset folder with labels")
    weights = "checkpoints of main_train.py; with two or more, an ensemble is measured as well"
    parser.add_argument("--trained_weights", nargs="+", metavar="FILE", required=True, help=weights)
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for predictions and results.json")
    parser.add_argument("--repeats", type=number(int, 1), default=3, metavar="N", help="predictions in each way")
    parser.add_argument("--gpu", default="cpu", metavar="DEVICE", help="number of a CUDA device, or cpu")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Predict in each way, and compare."""
    output = Path(args.output)
    make_output_folder(output)
    classes = load_trained(Path(args.trained_weights[0]), "--trained_weights").description.classes[1:]
    ways = make_ways(args.trained_weights, classes)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    dice: dict[str, dict[str, float]] = {}
    for _ in tqdm(range(args.repeats), "repeats"):
        for number_of_way, (name, flags) in enumerate(ways.items()):
            folder = output / f"way_{number_of_way}"
            words = ["--root", args.root, "--output", str(folder), "--gpu", args.gpu, "--amp", "off", "--overwrite"]
            seconds[name].append(predict([*words, *flags]))
            dice[name] = read_dice(folder)
    results = {**describe_machine(choose_device(args.gpu)), "cases": len(dice[ALONE]), "repeats": args.repeats}
    rows = {name: summarise(dice[name], seconds[name], dice[ALONE], seconds[ALONE]) for name in ways}
    write_text(output / "results.json", json.dumps({**results, "ways": rows}, indent=2) + "\n")
    print(f"{name_machine(results)}, {results['cases']} cases, {args.repeats} repeats\n")
    print(format_rows(rows))


def make_ways(weights: list[str], classes: tuple[str, ...]) -> dict[str, list[str]]:
    """Name the ways to predict, with their flags; the first network alone comes first."""
    first = ["--trained_weights", weights[0]]
    ways = {
        ALONE: first,
        "`--window gaussian`": [*first, "--window", "gaussian"],
        "`--mirror RL`": [*first, "--mirror", "RL"],
        "`--mirror`": [*first, "--mirror"],
        "`--keep_largest`, all classes": [*first, "--keep_largest", *classes],
    }
    if len(weights) > 1:
        others = {f"network {place}": ["--trained_weights", path] for place, path in enumerate(weights[1:], 2)}
        ways |= {**others, f"ensemble of {len(weights)}": ["--trained_weights", *weights]}
    return ways


def predict(words: list[str]) -> float:
    """Run test_seg.py in this process, and return its seconds."""
    args = test_seg.parse_args(words)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        started = time.perf_counter()
        test_seg.main(args)
        return time.perf_counter() - started


def read_dice(folder: Path) -> dict[str, float]:
    """Read the mean Dice of each case; NaN for a case without a scored class."""
    cases = json.loads((folder / "dice.json").read_text())["cases"]
    return {name: np.nan if scores["mean"] is None else scores["mean"] for name, scores in cases.items()}


def summarise(
    dice: dict[str, float], seconds: list[float], alone: dict[str, float], alone_seconds: list[float]
) -> dict[str, Any]:
    """Compare a way with the first network alone: mean Dice, its difference with SD over the cases, and seconds.

    Args:
        dice: mean Dice by case.
        seconds: seconds of each repetition.
        alone, alone_seconds: the same of the first network alone.
    """
    differences: NDArray[np.float64] = np.array([dice[name] - alone[name] for name in alone])
    compared = compare(differences)
    ratios = np.divide(seconds, alone_seconds)  # within a repetition, in which the machine is the same
    return {
        "dice": float(np.nanmean(list(dice.values()))),
        "difference": compared.difference,
        "sd": float(np.nanstd(differences, ddof=1)) if len(differences) > 1 else None,
        "interval": [compared.low, compared.high],
        "p": compared.p,
        "seconds_per_case": float(np.median(seconds)) / len(alone),
        "ratio": float(np.median(ratios)),
    }


def format_rows(rows: dict[str, dict[str, Any]]) -> str:
    """Format the table of README.md."""
    lines = [
        "| | mean Dice | difference ± SD (95 % interval of the mean) | s per case | time |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        low, high = row["interval"]
        sd = f" ± {row['sd']:.4f}" if row["sd"] is not None else ""
        difference = "" if name == ALONE else f"{row['difference']:+.4f}{sd} ({low:+.4f} to {high:+.4f})"
        cells = name, f"{row['dice']:.4f}", difference, f"{row['seconds_per_case']:.2f}", f"{row['ratio']:.2f} x"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

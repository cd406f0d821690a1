"""Step 9: Dice on MSD hippocampus: all networks of a seed in parallel, seed after seed while time is left.

Each network trains by ``main_train.py`` and predicts the validation cases by ``test_seg.py``, in a process of its own.
The processes share the device, since nothing is timed.
"""

import json
import multiprocessing
import time
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

import main_train
import test_seg
from benchmarks.gpu.bench import Bench
from engine.runtime.errors import run

ROOT = Path(__file__).parents[3]
DESCRIPTION = ROOT / "experiments" / "hippocampus" / "dataset.json"
NETWORKS, REDUCED_NETWORKS = ("REP3D", "REP3D_FIXED", "REP3D_NONE", "nnUNet"), ("REP3D",)
ROI_SIZE = ("64", "64", "64")  # nnUNet needs multiples of 32, at least 64 for its normalisation layers
RECIPE = ("--batch_size", "2", "--crop_sample", "1", "--lr", "1e-3", "--max_iter", "200", "--eval_step", "200")
REDUCED_RECIPE = (
    *("--roi_size", "32", "32", "32", "--feat_size", "4", "4", "4", "4", "--kernel_size", "5"),
    *("--max_iter", "2", "--eval_step", "2"),
)
SEED_S = 45  # estimate for the networks of the first seed; its duration is the estimate for later seeds


def measure(bench: Bench) -> None:
    """Record one row per network and seed."""
    if bench.data is None:
        bench.note(reason="no --data, expected a folder of MSD hippocampus")
        return
    networks = REDUCED_NETWORKS if bench.reduced else NETWORKS
    bench.note(recipe=list(REDUCED_RECIPE if bench.reduced else (*RECIPE, "--roi_size", *ROI_SIZE)))
    seed, expected = 0, 0.0 if bench.reduced else SEED_S
    while bench.seconds_left() > expected and not (bench.reduced and seed):
        start = time.monotonic()
        run_seed(bench, networks, seed)
        seed, expected = seed + 1, 1.1 * (time.monotonic() - start)
    if seed == 0:
        bench.note(reason=f"left out: {bench.seconds_left():.0f} s left, a seed takes about {SEED_S} s")


def run_seed(bench: Bench, networks: tuple[str, ...], seed: int) -> None:
    """Train and predict with all networks in parallel, and record the result of each when it ends."""
    context = multiprocessing.get_context("fork")  # CUDA is not yet initialised in this process
    running = {}
    for network in networks:
        folder = bench.scratch / f"{network}, seed {seed}"
        process = context.Process(target=train_and_predict, args=(bench, network, seed, folder))
        process.start()
        running[process.sentinel] = network, folder, process
    while running:
        for sentinel in connection.wait(list(running)):
            network, folder, process = running.pop(sentinel)  # type: ignore[arg-type]
            process.join()
            row = {"network": network, "seed": seed}
            bench.attempt(row, lambda folder=folder, process=process: read_dice(folder, process.exitcode))  # type: ignore[misc]


def train_and_predict(bench: Bench, network: str, seed: int, folder: Path) -> None:
    """Run both scripts for one network and seed."""
    data = ["--root", str(bench.data), "--gpu", bench.gpu]
    recipe = REDUCED_RECIPE if bench.reduced else (*RECIPE, "--roi_size", *ROI_SIZE)
    words = [*data, "--dataset", str(DESCRIPTION), "--output", str(folder), "--network", network, *recipe]
    status = run(main_train.main, main_train.parse_args([*words, "--seed", str(seed), "--cache_rate", "1"]))
    if status == 0:
        weights = ["--trained_weights", str(folder / "best_metric_model.pth"), "--output", str(folder / "predictions")]
        status = run(test_seg.main, test_seg.parse_args([*data, *weights]))
    raise SystemExit(status)


def read_dice(folder: Path, status: int | None) -> dict[str, Any]:
    """Read the mean Dice and, per case, the Dice of each class."""
    if status:
        return {"reason": f"ended with status {status}"}
    table = json.loads((folder / "predictions" / "dice.json").read_text())
    return {"mean_dice": table["mean"]["mean"], "dice_by_case": table["cases"]}


def lines(results: dict[str, Any]) -> list[str]:
    """Format one line per network: mean and spread over the seeds."""
    if "reason" in results:
        return [results["reason"]]
    summaries = []
    for network in dict.fromkeys(row["network"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["network"] == network]
        means = [row["mean_dice"] for row in rows if row["reason"] is None]
        if not means:
            summaries.append(f"{network}: {rows[0]['reason']}")
            continue
        spread = f", standard deviation {np.std(means, ddof=1):.4f}" if len(means) > 1 else ""
        summaries.append(f"{network}: mean Dice {np.mean(means):.4f}{spread}, seeds: {len(means)}")
    return summaries

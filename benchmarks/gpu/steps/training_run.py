"""Step 7: ``main_train.py`` itself on phantoms with ``--cache_dir``: steps per second, waiting for data, memory."""

import time
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_train
from benchmarks.gpu.bench import Bench
from benchmarks.processes import PeakMemory
from engine.runtime.errors import STOPPED, run
from tools.make_phantoms import make_dataset

DEMO = Path(__file__).parents[3] / "experiments" / "demo" / "dataset.json"  # coarse voxels, for the rehearsal
CASES = 4
SCALE, REDUCED_SCALE = 1.0, 3.0  # of the phantoms' voxels; cached cases have the dataset's spacing in any case
FIRST_SHARE = 0.65  # share of the time for the first run, which has to fill the cache
END_S = 6  # reserved for the end of the run and for reading its logs
WARM_UPS = 10  # iterations that do not count
WORKERS = (2, 8)  # default of main_train.py, and cores per GPU of a typical node
LEAST_S = 10  # a run needs so many seconds to be started


def measure(bench: Bench) -> None:
    """Record one row per number of workers."""
    root = bench.scratch / "phantoms"
    start = time.perf_counter()
    make_dataset(root, train=CASES, val=1, seed=0, scale=REDUCED_SCALE if bench.reduced else SCALE)
    bench.note(cases=CASES, data_s=time.perf_counter() - start)
    for count in WORKERS[:1] if bench.reduced else WORKERS:
        share = FIRST_SHARE if count == WORKERS[0] else 1
        seconds = share * (bench.seconds_left() - END_S)
        least = 0 if bench.reduced else LEAST_S
        bench.attempt({"num_workers": count}, lambda count=count, seconds=seconds: train(bench, count, seconds), least)  # type: ignore[misc]


def train(bench: Bench, workers: int, seconds: float) -> dict[str, Any]:
    """Train until the time is up, as in a batch system with a time limit, and read the logs of the run."""
    output = bench.scratch / f"run with {workers}"
    length = ["--max_iter", "4"] if bench.reduced else ["--max_hours", str(seconds / 3600)]
    data = ["--root", bench.scratch / "phantoms", "--dataset", DEMO if bench.reduced else "amos"]
    cache = ["--cache_dir", bench.scratch / "cache", "--num_workers", workers]
    words = [*data, *cache, "--output", output, "--gpu", bench.gpu, "--eval_step", 60000, *length]
    if bench.reduced:
        words += ["--roi_size", 32, 32, 32, "--feat_size", 4, 4, 4, 4, "--kernel_size", 5, "--overlap", 0]
    args = main_train.parse_args([str(word) for word in words])
    if bench.device.type == "cuda":
        torch.cuda.init()  # the statistics of an uninitialised device cannot be reset
        torch.cuda.reset_peak_memory_stats(bench.device)
    with PeakMemory() as peak:
        status = run(main_train.main, args, to_lower=main_train.MEMORY)
    if status not in (0, STOPPED):
        return {"reason": f"main_train.py ended with status {status}"}
    logged = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    waits, computes = (
        [event.value for event in logged.Scalars(f"train/{name}")][0 if bench.reduced else WARM_UPS :]
        for name in ("data_wait_s", "compute_s")
    )
    if not waits:
        return {"reason": f"fewer than {WARM_UPS} iterations in {seconds:.0f} s"}
    total = sum(waits) + sum(computes)
    gpu = torch.cuda.max_memory_allocated(bench.device) if bench.device.type == "cuda" else None
    return {
        "iterations": len(waits),
        "steps_per_s": len(waits) / total,
        "wait_share": sum(waits) / total,
        "host_peak_bytes": peak.bytes,
        "gpu_peak_bytes": gpu,
    }


def lines(results: dict[str, Any]) -> list[str]:
    """Format one line per run."""
    return [f"{row['num_workers']} workers: {describe(row)}" for row in results["rows"]]


def describe(row: dict[str, Any]) -> str:
    """Format the measurement of a run, or the reason why it has none."""
    if row["reason"] is not None:
        return row["reason"]
    host = f"host {row['host_peak_bytes'] / 1e9:.1f} GB"
    return f"{row['steps_per_s']:.2f} steps/s, waiting {row['wait_share']:.1%} of the time for data, {host}"

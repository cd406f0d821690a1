"""Order of the steps, the most important first; each runs in a process of its own with a share of the time."""

import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, read_results, results_path
from benchmarks.processes import kill_tree
from engine.runtime.files import write_text
from engine.runtime.memory import tune_process

LEAST_S = 6  # a step with a smaller share is left out
PATIENCE_S = 90  # for the first process, which imports everything, possibly with a cold page cache
LOG_CHARACTERS = 8000  # end of a step's output that is kept if something failed
SHARED_MEMORY, ROOM = Path("/dev/shm"), 32 * 2**30  # with so much room it takes the scratch files: no disk is measured


@dataclass(frozen=True)
class Plan:
    """Share of a step in a budget of 480 seconds; time that a step leaves goes to later steps.

    Args:
        share: seconds on a GPU.
        rehearsal: seconds on a CPU, at the reduced size.
    """

    share: int
    rehearsal: int


STEPS = {
    "machine": Plan(share=12, rehearsal=40),
    "correctness": Plan(share=80, rehearsal=100),
    "convolution": Plan(share=60, rehearsal=25),
    "training_step": Plan(share=110, rehearsal=60),
    "networks": Plan(share=45, rehearsal=45),
    "kernel_size": Plan(share=35, rehearsal=50),
    "training_run": Plan(share=35, rehearsal=70),
    "prediction": Plan(share=43, rehearsal=60),
    "accuracy": Plan(share=60, rehearsal=50),
}
# Imports of the steps, which take seconds: their processes are forked from one that has done them.
PRELOADED = ["monai.losses", "monai.transforms", "engine.training.step", "load_datasets_transforms"]


def run_steps(names: Sequence[str], bench: Bench) -> list[str]:
    """Run steps one after the other, each in a process of its own that is killed when its time is up.

    Args:
        names: names of the steps, in the order of ``STEPS``.
        bench: bench of the whole run; each step gets a copy with its own name, time and scratch folder.
    Returns: one line for each step that did not end by itself.
    """
    tune_process()  # sets environment variables that the processes inherit
    bench = see_one_device(bench)
    context = make_context(bench.device) if bench.seconds_left() > LEAST_S else None
    failures = []
    for position, name in enumerate(names):
        plans = [STEPS[later] for later in names[position:]]
        shares = [plan.rehearsal if bench.reduced else plan.share for plan in plans]
        seconds = bench.seconds_left() * shares[0] / sum(shares)
        with tempfile.TemporaryDirectory(
            prefix=f"rep3d_{name}_", dir=scratch_folder(), ignore_cleanup_errors=True
        ) as scratch:
            step = replace(bench, step=name, seconds=seconds, scratch=Path(scratch))
            if seconds < LEAST_S:
                step.note(reason=f"left out: {max(0, seconds):.0f} s of its own, at least {LEAST_S} s needed")
                continue
            print(f"{name}: up to {seconds:.0f} s ...", file=sys.stderr, flush=True)
            if reason := run_step(step, context):
                failures.append(f"{name}: {reason}")
    return failures


def see_one_device(bench: Bench) -> Bench:
    """Make only the chosen CUDA device visible to the processes, as number 0, so that no kernel runs on another."""
    if bench.reduced:
        return bench
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(bench.gpu)].strip() if visible else bench.gpu
    return replace(bench, gpu="0", seconds=bench.seconds_left())


def make_context(device: torch.device) -> Any:
    """Choose how processes start: by fork from one that has imported everything, or by spawn.

    A forked process cannot use the device if an import initialises CUDA, which some version of a library may do.
    """
    # With it, PyTorch counts devices by the driver's list, which does not initialise CUDA.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    probe = context.Process(target=touch, args=(device,))
    probe.start()
    probe.join(PATIENCE_S)
    if probe.exitcode == 0:
        return context
    probe.kill()
    print("forked processes cannot use the device: each step repeats all imports", file=sys.stderr)
    return multiprocessing.get_context("spawn")


def touch(device: torch.device) -> None:
    """Use a device."""
    torch.ones(1, device=device).item()


def scratch_folder() -> Path | None:
    """Return shared memory if it has room, otherwise None for the system's temporary folder."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM else None


def run_step(bench: Bench, context: Any) -> str | None:
    """Run one step; return the reason, also written to its JSON file, if it did not end by itself."""
    log = bench.scratch / "log"
    process = context.Process(target=work, args=(bench, log))
    start = time.monotonic()
    process.start()
    try:
        process.join(bench.seconds_left())
    finally:
        if hangs := process.is_alive():
            kill_tree(process.pid)
            process.join(10)  # with a timeout, since a hanging driver can block it forever
    took = time.monotonic() - start
    reason = None
    printed = log.read_text(errors="backslashreplace") if log.exists() else ""
    if hangs:
        reason = f"stopped after {took:.0f} s"
    elif process.exitcode:
        reason = f"failed: exit status {process.exitcode}{''.join(f': {line}' for line in printed.splitlines()[-1:])}"
    results = read_results(bench.output, bench.step, bench.device.type) or bench.results
    if reason:
        results["reason"] = reason
    if reason or any(row.get("reason") for row in results["rows"]):
        results["log"] = printed[-LOG_CHARACTERS:]
    path = results_path(bench.output, bench.step, bench.device.type)
    write_text(path, json.dumps({**results, "took_s": took}, indent=1) + "\n")
    return reason


def work(bench: Bench, log: Path) -> None:
    """Run a step in its process, with stdout and stderr redirected to its log."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    tune_process()
    multiprocessing.set_start_method("fork", force=True)  # as in the scripts, instead of the inherited forkserver
    importlib.import_module(f"benchmarks.gpu.steps.{bench.step}").measure(bench)

"""The steps in the order of worth, and how each gets a process and a share of the time."""

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

LEAST_S = 6  # with fewer seconds of its own a step is left out
PATIENCE_S = 90  # for the first process, which imports everything on a machine that may be cold
LOG_LETTERS = 8000  # of what a step printed, kept where something is missing
SHARED_MEMORY, ROOM = Path("/dev/shm"), 32 * 2**30  # scratch files go there where they fit, so that no disk is measured


@dataclass(frozen=True)
class Plan:
    """A step's share of the time, in seconds of a budget of 480; what one leaves goes to those after it.

    Args:
        share: on a GPU.
        rehearsal: on a CPU, at its reduced size.
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
# What the steps import, which takes seconds: their processes are forked from one that has it already.
PRELOADED = ["monai.losses", "monai.transforms", "engine.training.step", "load_datasets_transforms"]


def run_steps(names: Sequence[str], bench: Bench) -> list[str]:
    """Run steps one after the other, each in a process of its own that is ended when its time is up.

    Args:
        names: in the order of ``STEPS``.
        bench: of the whole; each step gets one with its own name, time and scratch folder.
    Returns: a line for each step that did not end by itself.
    """
    tune_process()  # variables that the processes inherit
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
    """Let the processes see the chosen CUDA device alone, as number 0, so that no kernel runs on another."""
    if bench.reduced:
        return bench
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(bench.gpu)].strip() if visible else bench.gpu
    return replace(bench, gpu="0", seconds=bench.seconds_left())


def make_context(device: torch.device) -> Any:
    """How processes are started: forked from one that has imported everything, or anew.

    Forked ones cannot use the device if an import touches CUDA, as some version of some library may do.
    """
    # Asked for its devices, PyTorch then looks at the driver's list, which leaves CUDA itself untouched.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    probe = context.Process(target=touch, args=(device,))
    probe.start()
    probe.join(PATIENCE_S)
    if probe.exitcode == 0:
        return context
    probe.kill()
    print("forked processes cannot use the device: each step imports everything anew", file=sys.stderr)
    return multiprocessing.get_context("spawn")


def touch(device: torch.device) -> None:
    """Use a device."""
    torch.ones(1, device=device).item()


def scratch_folder() -> Path | None:
    """Shared memory where it has room; else the system's place for temporary files."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM else None


def run_step(bench: Bench, context: Any) -> str | None:
    """Run one step; the reason why it did not end by itself, which its JSON then has as well."""
    log = bench.scratch / "log"
    process = context.Process(target=work, args=(bench, log))
    start = time.monotonic()
    process.start()
    try:
        process.join(bench.seconds_left())
    finally:
        if hangs := process.is_alive():
            kill_tree(process.pid)
            process.join(10)  # a driver that hangs keeps it for ever
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
        results["log"] = printed[-LOG_LETTERS:]
    path = results_path(bench.output, bench.step, bench.device.type)
    write_text(path, json.dumps({**results, "took_s": took}, indent=1) + "\n")
    return reason


def work(bench: Bench, log: Path) -> None:
    """What a step's process does; what it prints goes to its log."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    tune_process()
    multiprocessing.set_start_method("fork", force=True)  # as in the scripts; forkserver would be inherited
    importlib.import_module(f"benchmarks.gpu.steps.{bench.step}").measure(bench)

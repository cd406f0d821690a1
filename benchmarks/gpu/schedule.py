"""The steps in the order of worth, and how each gets a process and a share of the time."""

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu.bench import Bench, read_results, results_path
from benchmarks.processes import kill_tree
from engine.files import write_text
from engine.process import tune_process


@dataclass(frozen=True)
class Plan:
    """A step's share of the time, in seconds of a budget of 480; what one leaves goes to those after it.

    Args:
        share: on a GPU.
        rehearsal: on a CPU, at its reduced size.
        least_s: with fewer seconds of its own it is left out.
    """

    share: int
    rehearsal: int
    least_s: int = 6


STEPS = {
    "machine": Plan(share=12, rehearsal=30),
    "correctness": Plan(share=80, rehearsal=90),
    "convolution": Plan(share=60, rehearsal=25),
    "training_step": Plan(share=110, rehearsal=70),
    "networks": Plan(share=45, rehearsal=50),
    "kernel_size": Plan(share=35, rehearsal=45),
    "training_run": Plan(share=35, rehearsal=60),
    "prediction": Plan(share=43, rehearsal=60),
    "accuracy": Plan(share=60, rehearsal=70),
}


# What the steps import, which takes seconds: their processes are forked from one that has it already.
PRELOADED = ["monai.losses", "monai.transforms", "engine.training_loop", "load_datasets_transforms"]


def run_steps(names: Sequence[str], bench: Bench) -> list[str]:
    """Run steps one after the other, each in a process of its own that is ended when its time is up.

    Args:
        names: in the order of ``STEPS``.
        bench: of the whole; each step gets one with its own name, time and scratch folder.
    Returns: a line for each step that did not end by itself.
    """
    tune_process()  # variables that the processes inherit
    # Looking for a CUDA device by its driver's list leaves CUDA itself untouched, and with it the right to fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    failures = []
    for position, name in enumerate(names):
        plans = [STEPS[later] for later in names[position:]]
        shares = [plan.rehearsal if bench.reduced else plan.share for plan in plans]
        seconds = bench.seconds_left() * shares[0] / sum(shares)
        with tempfile.TemporaryDirectory(prefix=f"rep3d_{name}_", ignore_cleanup_errors=True) as scratch:
            step = replace(bench, step=name, seconds=seconds, scratch=Path(scratch))
            if seconds < plans[0].least_s:
                step.note(reason=f"left out: {max(0, seconds):.0f} s of its own, at least {plans[0].least_s} s needed")
                continue
            print(f"{name}: up to {seconds:.0f} s ...", file=sys.stderr, flush=True)
            if reason := run_step(step, context):
                failures.append(f"{name}: {reason}")
    return failures


def run_step(bench: Bench, context: multiprocessing.context.ForkServerContext) -> str | None:
    """Run one step; the reason why it did not end by itself, which its JSON then has as well."""
    log = bench.scratch / "log"
    process = context.Process(target=work, args=(bench, log))
    start = time.monotonic()
    process.start()
    assert process.pid is not None  # it was started
    try:
        process.join(bench.seconds_left())
    finally:
        if hangs := process.is_alive():
            kill_tree(process.pid)
            process.join()
    took = time.monotonic() - start
    reason = None
    if hangs:
        reason = f"stopped after {took:.0f} s"
    elif process.exitcode:
        told = log.read_text(errors="backslashreplace").strip().splitlines() if log.exists() else []
        reason = f"failed: exit status {process.exitcode}{': ' + told[-1] if told else ''}"
    results = read_results(bench.output, bench.step, bench.device.type) or bench.results
    if reason:
        results |= {"reason": reason, "log": log.read_text(errors="backslashreplace")[-4000:] if log.exists() else ""}
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

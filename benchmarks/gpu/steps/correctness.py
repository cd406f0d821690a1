"""Step 2: the ``gpu`` tests, which compare a GPU with the CPU: convolutions, networks, precisions, scripts, NCCL."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.bench import Bench

ROOT = Path(__file__).parents[3]
TESTS = (  # the longest first, Triton's kernels last, since an invalid memory access ends the process
    *("tests/test_gpu_scripts.py", "tests/networks/test_gpu.py"),
    "tests/benchmarks/test_candidates_on_a_gpu.py",
)
PROCESSES, REHEARSED_PROCESSES = 4, 2  # of pytest-xdist, if it is installed
THREADS = 4  # per process: the machines with GPUs have 16 cores
REHEARSED = "convolution or (every_network and UNet3D) or communicates"  # tests that take seconds on a CPU
SHOWN = 5  # number of failed tests in the table


def measure(bench: Bench) -> None:
    """Record one row per test."""
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # for the processes of pytest-xdist
    flags = ["-m", "gpu", "--gpu", bench.gpu, "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    flags += ["--continue-on-collection-errors", "--basetemp", str(bench.scratch / "pytest")]
    if bench.reduced:
        flags += ["-k", REHEARSED]
    if importlib.util.find_spec("xdist"):
        flags += ["--numprocesses", str(REHEARSED_PROCESSES if bench.reduced else PROCESSES), "--dist", "worksteal"]
    status = pytest.main([*flags, *(str(ROOT / name) for name in TESTS)], plugins=[_Recorder(bench)])
    bench.note(pytest_status=int(status))


class _Recorder:
    """Plugin of pytest that records its reports as rows."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._record(report, seconds=None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # others are setup or teardown without problems
            self._record(report, seconds=report.duration)

    def _record(self, report: pytest.CollectReport | pytest.TestReport, seconds: float | None) -> None:
        row: dict[str, Any] = {"test": report.nodeid, "seconds": seconds, "outcome": report.outcome, "reason": None}
        if report.outcome != "passed":
            text = report.longreprtext
            errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E  ")]
            row |= {"reason": f"{report.outcome}: {(errors or text.splitlines() or ['?'])[0]}"}
        if report.outcome == "failed":
            row["report"] = report.longreprtext[-3000:]
        self.bench.record(**row)


def lines(results: dict[str, Any]) -> list[str]:
    """Format the counts, and the first tests that failed."""
    rows = results["rows"]
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in ("passed", "failed", "skipped")}
    failed = [f"{row['test'].rpartition('/')[2]}: {row['reason']}"[:150] for row in rows if row["outcome"] == "failed"]
    more = [f"and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    return [", ".join(f"{count} {outcome}" for outcome, count in counts.items()), *failed[:SHOWN], *more]

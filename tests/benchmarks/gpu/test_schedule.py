"""A step that fails, hangs or has no time reports a reason, and the other steps go on."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_one_line

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import bench as bench_module
from benchmarks.gpu import schedule
from benchmarks.gpu.bench import Bench, results_path
from benchmarks.gpu.report import MOST_COLUMNS, MOST_LINES, table
from benchmarks.gpu.schedule import STEPS, run_step, run_steps
from benchmarks.processes import process_tree
from engine.runtime.errors import run


@pytest.fixture
def bench(tmp_path):
    machine = {"device": "a GPU", "cpu": "a CPU", "threads": 1, "torch": "2", "date": "today"}
    return Bench("machine", "cpu", machine, tmp_path, tmp_path, None, seconds=60)


def left_behind(bench):
    return json.loads(results_path(bench.output, bench.step, "cpu").read_text())


@pytest.fixture
def run_as_step(bench, monkeypatch):
    """Run a function as ``measure`` of the step, in a process of its own."""

    def run_it(measure):
        monkeypatch.setattr(schedule.importlib, "import_module", lambda _: SimpleNamespace(measure=measure))
        return run_step(bench, multiprocessing.get_context("fork"))

    return run_it


def test_a_step_that_ends_leaves_its_rows_and_seconds(bench, run_as_step):
    assert run_as_step(lambda bench: bench.record(value=3)) is None
    found = left_behind(bench)
    assert found["rows"] == [{"value": 3}]
    assert found["took_s"] > 0
    assert "reason" not in found


def test_a_step_that_fails_keeps_earlier_rows_and_reports_the_reason(bench, run_as_step):
    def measure(bench):
        bench.record(value=3)
        raise ZeroDivisionError("of all things")

    assert "ZeroDivisionError: of all things" in run_as_step(measure)
    found = left_behind(bench)
    assert found["rows"] == [{"value": 3}]
    assert found["reason"].startswith("failed: exit status 1: ZeroDivisionError: of all things")
    assert "Traceback" in found["log"]


def test_a_killed_step_reports_it(bench, run_as_step):
    assert run_as_step(lambda _: os.kill(os.getpid(), signal.SIGKILL)).startswith("failed: exit status -9")
    assert left_behind(bench)["rows"] == []


def test_a_step_that_hangs_is_killed_with_its_descendants(bench, run_as_step, tmp_path):
    def measure(bench):
        sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
        sleeper = subprocess.Popen(sleep, start_new_session=True)  # like processes of torchrun
        bench.record(sleeper=sleeper.pid)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(100)

    bench.deadline = time.monotonic() + 3
    assert run_as_step(measure) == "stopped after 3 s"
    found = left_behind(bench)
    assert found["reason"] == "stopped after 3 s"
    end = time.monotonic() + 10
    while found["rows"][0]["sleeper"] in process_tree(1) and time.monotonic() < end:
        time.sleep(0.05)
    assert found["rows"][0]["sleeper"] not in process_tree(1)


def test_a_row_reports_a_lack_of_memory_or_time(bench):
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nMore of it.")

    def broken():
        raise KeyError("gone")

    bench.attempt({"name": "large"}, too_large)
    bench.attempt({"name": "broken"}, broken)
    bench.attempt({"name": "late"}, lambda: {"seconds": 1}, least_s=100)
    bench.attempt({"name": "fine"}, lambda: {"seconds": 1}, least_s=1)
    assert left_behind(bench)["rows"] == [
        {"name": "large", "reason": "out of memory: CUDA out of memory. Tried to allocate 3 GiB."},
        {"name": "broken", "reason": "failed: KeyError: 'gone'"},
        {"name": "late", "reason": bench_module.LEFT_OUT},
        {"name": "fine", "reason": None, "seconds": 1},
    ]


def test_time_that_a_step_leaves_goes_to_the_others(bench, monkeypatch):
    given = {}

    def quick(step, _):
        given[step.step] = step.seconds

    monkeypatch.setattr(schedule, "run_step", quick)
    monkeypatch.setattr(schedule, "make_context", lambda _: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    bench.gpu, bench.deadline = "1", time.monotonic() + 480
    assert run_steps(list(STEPS), bench) == []
    assert given["machine"] == pytest.approx(STEPS["machine"].share, abs=1)
    assert given["accuracy"] == pytest.approx(480, abs=1)
    assert list(given) == list(STEPS)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"


def test_steps_without_time_are_left_out_and_report_it(tmp_path, capsys):
    output = tmp_path / "results"
    args = command.parse_args(["--gpu", "cpu", "--budget_s", "2", "--output", str(output)])
    assert run(command.main, args) == 0
    printed = capsys.readouterr().out
    for name in STEPS:
        assert json.loads((output / f"{name}_cpu.json").read_text())["reason"].startswith("left out: ")
        assert f"-- {name}: left out: " in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA devices")
def test_no_gpu_is_one_line(tmp_path, capsys):
    status = run(command.main, command.parse_args(["--output", str(tmp_path / "results")]))
    assert_one_line((status, "", capsys.readouterr().err), "--gpu: found 0, expected cpu: torch sees no CUDA device")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--gpu", "first"], ["--gpu: found 'first'"]),
        (["--gpu", "cpu", "--data", "nowhere"], ["--data: found no nowhere/imagesTr"]),
        (["--gpu", "cpu", "--budget_s", "0"], ["--budget_s"]),
        (["--gpu", "cpu", "--budget_s", "1e9"], ["--budget_s", "from 1 to 86400"]),
        (["--gpu", "cpu", "--steps", "machine", "dance"], ["--steps", "dance"]),
    ],
)
def test_mistakes_are_one_line(words, parts, tmp_path, capsys):
    try:
        status = run(command.main, command.parse_args([*words, "--output", str(tmp_path / "results")]))
    except SystemExit as stop:
        status = stop.code
    assert_one_line((status, "", capsys.readouterr().err), *parts)


def test_results_are_not_overwritten(tmp_path, capsys):
    path = tmp_path / "machine_cpu.json"
    path.write_text("a user's")
    words = ["--gpu", "cpu", "--budget_s", "2", "--output", str(tmp_path)]
    assert_one_line((run(command.main, command.parse_args(words)), "", capsys.readouterr().err), path)
    assert path.read_text() == "a user's"
    assert run(command.main, command.parse_args([*words, "--steps", "accuracy"])) == 0


def test_a_table_of_many_rows_is_cut_and_names_the_file_with_the_rest(bench):
    variant = {"name": "a variant" * 30, "autocast": "off", "step_s": 1.0, "peak_bytes": 10**9, "matrix_share": 0.5}
    network = {"network": "REP3D", "step_s": 1.0, "peak_bytes": 10**9}
    for step, row in (("training_step", variant), ("networks", network)):
        one = replace(bench, step=step)
        for _ in range(200):
            one.record(**row, reason=None)
    lines = table(["training_step", "networks"], bench.output, "cpu")
    assert len(lines) == MOST_LINES
    assert max(map(len, lines)) <= MOST_COLUMNS
    for step in ("training_step", "networks"):
        assert f"-- {step}" in lines
        assert f"... {step}_cpu.json has the rest" in lines

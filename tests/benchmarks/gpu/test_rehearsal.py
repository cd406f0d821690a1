"""All of benchmarks.gpu on a CPU at the reduced size, so that errors show before a GPU is used."""

import importlib
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from benchmarks.gpu.report import MOST_LINES
from benchmarks.gpu.schedule import STEPS
from benchmarks.gpu.steps import accuracy
from benchmarks.gpu.steps.convolution import fft_over_floor
from benchmarks.gpu.steps.training_step import LARGE, PUBLISHED, SMALL, SMALL_NATIVE, ratios
from networks.large_kernel_conv import DIRECT_COST, FFT_COST

pytestmark = pytest.mark.slow

MACHINE = ("device", "cpu", "threads", "torch", "date", "reduced")  # in every file from the start
SECONDS = 120  # duration of the whole rehearsal on an idle machine


@pytest.fixture(scope="module")
def rehearsal(box_template, tmp_path_factory):
    """Folder of results, printed text and seconds; the boxes replace the hippocampus."""
    output = tmp_path_factory.mktemp("rehearsal")
    words = ["--gpu", "cpu", "--budget_s", str(2 * SECONDS), "--output", output, "--data", box_template]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return output, done.stdout, time.monotonic() - start


@pytest.fixture
def results(rehearsal):
    return {name: json.loads((rehearsal[0] / f"{name}_cpu.json").read_text()) for name in STEPS}


def test_every_step_ends_by_itself_and_in_time(rehearsal, results):
    output, _, seconds = rehearsal
    assert sorted(path.name for path in output.iterdir()) == sorted([*(f"{n}_cpu.json" for n in STEPS), "table.txt"])
    assert [name for name, found in results.items() if "reason" in found] == []
    assert all(found["reduced"] for found in results.values())
    assert seconds < 2 * SECONDS  # other tests may run at the same time


def test_every_row_has_its_measurement(results):
    reasons = {
        (name, row["reason"])
        for name, found in results.items()
        for row in found["rows"]
        if row.get("reason") is not None
    }
    # Compiled variants, and on a busy machine other variants, are left out for lack of time; gpu tests are skipped.
    assert {name for name, reason in reasons if not reason.startswith("skipped")} <= {"training_step"}
    assert {reason for name, reason in reasons if name == "training_step"} <= {"left out: no time"}


def test_the_steps_measured_everything(results):
    assert results["machine"]["matrix_rate"] > results["machine"]["copy_rate"] > 1e8
    assert {row["outcome"] for row in results["correctness"]["rows"]} == {"passed", "skipped"}
    convolution = results["convolution"]
    rows = [row for row in convolution["rows"] if row["method"] != "native and fft"]  # of the fit
    assert {row["method"] for row in rows} == {"native", "fft", "dft bf16", "dft fp16", "dft tf32"}
    assert all(max(row["errors"].values()) < 2e-2 for row in rows)
    assert fft_over_floor(convolution) > 1
    names = [row["name"] for row in results["training_step"]["rows"]]
    assert names[:4] == [LARGE, SMALL, SMALL_NATIVE, PUBLISHED]
    assert len(names) == len(set(names)) == 30
    assert results["training_step"]["profile"]
    assert 0 < ratios(results["training_step"])["convolutions_share"] < 1
    assert {row["way"] for row in results["kernel_size"]["rows"]} == {"here", "native"}
    (run,) = results["training_run"]["rows"]
    assert run["iterations"] == 4
    assert 0 <= run["wait_share"] < 1
    assert [row["way"] for row in results["prediction"]["rows"]] == ["steps", "test_seg.py"]
    (accurate,) = results["accuracy"]["rows"]
    assert (accurate["network"], accurate["seed"]) == (accuracy.REDUCED_NETWORKS[0], 0)
    assert set(accurate["dice_by_case"]) == {"box_8", "box_9"}


@pytest.mark.parametrize("name", list(STEPS))
def test_a_step_stopped_at_any_point_can_be_formatted(name, results):
    found = results[name]
    step = importlib.import_module(f"benchmarks.gpu.steps.{name}")
    notes = [key for key in found if key not in ("step", "rows", *MACHINE)]
    for rows in range(len(found["rows"]) + 1):
        for noted in range(len(notes) + 1):
            stopped = {key: value for key, value in found.items() if key not in notes[noted:]}
            assert all(isinstance(line, str) for line in step.lines({**stopped, "rows": found["rows"][:rows]}))


def test_the_table_is_short_and_its_constants_can_be_pasted(rehearsal, results):
    output, printed, _ = rehearsal
    text = (output / "table.txt").read_text()
    assert text in printed
    lines = text.splitlines()
    assert len(lines) <= MOST_LINES
    assert [line.split()[1].rstrip(",:") for line in lines if line.startswith("--")] == list(STEPS)
    pasted = {"DIRECT_COST": dict(DIRECT_COST), "FFT_COST": dict(FFT_COST)}
    exec("\n".join(results["convolution"]["ready_to_paste"]), pasted)
    for name in ("DIRECT_COST", "FFT_COST"):
        assert {("cuda", "forward"), ("cuda", "backward")} < pasted[name].keys()
        assert all(line in text for line in results["convolution"]["ready_to_paste"])

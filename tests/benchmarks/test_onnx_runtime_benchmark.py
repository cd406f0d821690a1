"""The benchmark of ONNX Runtime measures each way in a process of its own, which ends at the limit."""

import json
import sys

import pytest
from conftest import assert_one_line

from benchmarks import onnx_runtime
from benchmarks.onnx_runtime import format_seconds, main, measure, parse_args, report
from engine.runtime.errors import run
from engine.weights.checkpoints import NetworkConfig

TINY = ["--feat_size", "2", "2", "2", "2", "--kernel_size", "5", "--roi_size", "32", "32", "16", "--repeats", "1"]


@pytest.mark.slow
def test_benchmark(tmp_path, capsys):
    output = tmp_path / "new" / "result.json"
    results = main(parse_args([*TINY, "--output", str(output)]))
    assert json.loads(output.read_text()) == results
    assert [row["way"] for row in results["rows"]] == list(onnx_runtime.WAYS)
    assert all(row["window_s"] > 0 and row["runs"] == 1 and row["reason"] is None for row in results["rows"])
    assert "ONNX Runtime with Fourier transforms" in capsys.readouterr().out


def test_a_process_that_takes_too_long_is_ended():
    config = NetworkConfig("REP3D", 1, 2, (32, 32, 16), {"feat_size": [2, 2, 2, 2]})
    row = measure("ONNX Runtime", config, 1, limit_s=0.5)
    assert row == {"way": "ONNX Runtime", "window_s": None, "runs": 0, "reason": "more than 0.5 s"}


def test_a_process_that_fails_is_reported():
    row = measure("ONNX Runtime", NetworkConfig("REP4D", 1, 2, (32, 32, 16), {}), 1, limit_s=60)
    assert (row["window_s"], row["reason"]) == (None, "failed: exit status 1")


def test_the_report_has_ratios_where_they_are_known():
    machine = {"device": "a CPU", "threads": 2, "torch": "2.13", "date": "2026-11-29", "onnxruntime": "1.32"}
    rows = [
        {"way": "PyTorch", "window_s": 2.0, "runs": 2, "reason": None},
        {"way": "ONNX Runtime", "window_s": 130.0, "runs": 1, "reason": None},
        {"way": "slow", "window_s": None, "runs": 0, "reason": "more than 9 s"},
    ]
    lines = report({**machine, "roi_size": [96, 96, 96], "rows": rows}).splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == ["1.0", "65.0", "-"]
    assert [format_seconds(row) for row in rows] == ["2", "130", "more than 9 s"]


def test_mistakes(tmp_path, monkeypatch, capsys):
    words = [*TINY, "--output", str(tmp_path / "result.json")]
    wrong = parse_args([*words, "--roi_size", "20", "32", "32"])
    assert_one_line((run(main, wrong), "", capsys.readouterr().err), "roi_size: found 20 x 32 x 32")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_one_line((run(main, parse_args(words)), "", capsys.readouterr().err), "no package onnxruntime")

"""The experiment that runs every network through both scripts."""

import json

import pytest

from engine.runtime.errors import run
from experiments.every_network import run as experiment


@pytest.fixture
def few_cases(boxes, monkeypatch):
    monkeypatch.setattr(experiment, "CASES", {"Tr": 1, "Val": 1})
    monkeypatch.setattr(experiment, "DESCRIPTION", boxes / "boxes.json")
    return boxes


def run_experiment(root, output, *names):
    arguments = ["--root", str(root), "--output", str(output), "--max_iter", "1", "--networks", *names]
    return run(experiment.main, experiment.parse_args(arguments))


@pytest.mark.slow
def test_each_network_has_a_row(few_cases, tmp_path, capsys):
    assert run_experiment(few_cases, tmp_path / "out", "UNet3D") == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert rows.keys() == {"UNet3D"}
    assert 0 <= rows["UNet3D"]["dice"] <= 1
    assert "| `UNet3D` |" in capsys.readouterr().out


def test_a_failure_is_a_row_with_its_reason(few_cases, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "ROI_SIZE", (40, 48, 48))
    assert run_experiment(few_cases, tmp_path / "out", "SwinUNETR") == 0
    assert "expected three sides divisible by 32" in capsys.readouterr().out


def test_too_few_cases_are_refused(boxes, tmp_path, capsys):
    assert run_experiment(boxes, tmp_path / "out", "UNet3D") == 2
    assert "error: --root: found 3 files in" in capsys.readouterr().err

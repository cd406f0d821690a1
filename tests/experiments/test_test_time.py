"""The experiment that compares ways to predict."""

import json

import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from engine.runtime.errors import run
from experiments.test_time import run as experiment


def test_each_way_has_a_row(box_template, trained, tmp_path, capsys):
    first, second = trained / "best_metric_model.pth", tmp_path / "second.pth"
    content = torch.load(first, weights_only=True)
    content["model"]["out.conv.conv.bias"] += 0.5
    torch.save(content, second)
    words = ["--root", box_template, "--output", tmp_path / "out", "--repeats", "1", "--trained_weights", first, second]
    assert run(experiment.main, experiment.parse_args(list(map(str, words)))) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["cases"] == 2
    out = capsys.readouterr().out
    for name, row in results["ways"].items():
        assert 0 < row["dice"] <= 1
        assert row["seconds_per_case"] > 0
        assert f"| {name} | {row['dice']:.4f} |" in out
    assert list(results["ways"])[-2:] == ["network 2", "ensemble of 2"]
    flags = [json.loads((path / "settings.json").read_text()) for path in sorted((tmp_path / "out").glob("way_*"))]
    assert [settings["window"] for settings in flags].count("gaussian") == 1
    assert [settings["mirror"] for settings in flags if settings["mirror"]] == [["RL"], ["RL", "AP", "IS"]]
    assert len(flags) == len(results["ways"]) == 7


def test_a_way_is_compared_case_by_case():
    alone, dice = {"a": 0.5, "b": 0.7, "c": np.nan}, {"a": 0.6, "b": 0.7, "c": np.nan}
    row = experiment.summarise(dice, [3.0, 8.0, 5.0], alone, [1.0, 4.0, 2.0])
    assert row["difference"] == pytest.approx(0.05)
    assert row["sd"] == pytest.approx(0.1 / 2**0.5)
    assert row["ratio"] == 2.5
    assert row["seconds_per_case"] == pytest.approx(5 / 3)


def test_the_committed_table_is_that_of_the_results():
    folder = REPOSITORY / "experiments" / "test_time"
    rows = json.loads((folder / "results.json").read_text())["ways"]
    assert experiment.format_rows(rows) in (folder / "README.md").read_text()

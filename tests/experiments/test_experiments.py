"""Experiments: their tables, the runner that can be stopped anywhere, what it refuses, and the report."""

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, assert_one_line, wait_for_iteration

import main_train
from engine.runtime.arguments import network_overrides
from engine.runtime.errors import InputError, Stopped, run
from engine.runtime.files import LAST
from engine.runtime.stop_requests import StopRequests
from experiments import report
from experiments import run as runner
from experiments.experiment import FOLDER, NAMES, SCALES, Experiment, read_experiment
from experiments.results import Results, read_rows
from networks import build_network

EVERY_ARM = [(name, arm) for name in NAMES for arm in read_experiment(name, "standard").arms]


def arguments(boxes, tmp_path, name, *more):
    data = ["--root", str(boxes), "--dataset", str(boxes / "boxes.json"), "--scale", "tiny", "--seeds", "1"]
    return [name, *data, "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), *more]


@pytest.mark.parametrize(("name", "arm"), EVERY_ARM)
def test_every_arm_is_a_valid_command(name, arm):
    for scale in SCALES:
        experiment = read_experiment(name, scale)
        flags = ["--root", "r", "--output", "o", "--dataset", experiment.dataset, *experiment.arms[arm]]
        args = main_train.parse_args(flags)
        assert experiment.reference in experiment.arms
        if scale == "standard":
            with torch.device("meta"):
                build_network(args.network, 1, 3, args.roi_size, **network_overrides(args))


def test_every_arm_is_another_one():
    for name in NAMES:
        flags = [tuple(flags) for flags in read_experiment(name, "standard").arms.values()]
        assert len(set(flags)) == len(flags)


@pytest.fixture(scope="module")
def tried(box_template, tmp_path_factory):
    """Folder of a finished experiment: four networks, of which the last two are the same in other words."""
    folder = tmp_path_factory.mktemp("rate_or_start")
    command = arguments(box_template, folder, "rate_or_start", "--jobs", "2")
    subprocess.run([sys.executable, "-m", "experiments.run", *command], cwd=REPOSITORY, check=True)
    return folder


def test_results_have_a_row_per_case_and_class(tried):
    rows = read_rows(tried / "results" / "results.csv")
    arms = list(read_experiment("rate_or_start", "tiny").arms)
    assert [(row["arm"], row["case"], row["class"]) for row in rows] == [
        (arm, case, label) for arm in arms for case in ("box_8", "box_9") for label in ("left", "right")
    ]
    runs = json.loads((tried / "results" / "runs.json").read_text())
    assert {row["code"] for row in rows} == {runs["code"]}
    assert list(runs["arms"]) == arms
    for arm in arms:
        facts = runs["runs"][f"{arm}, seed 0"]
        assert facts["seconds"] > 0
        assert facts["device"]
        assert facts["commit"]
        assert facts["command"].startswith("main_train.py --root ")
    scored = json.loads((tried / "runs" / "rate_or_start_tiny" / "REP3D_FIXED_0" / "dice.json").read_text())["cases"]
    own = {(row["case"], row["class"]): float(row["dice"]) for row in rows if row["arm"] == "REP3D_FIXED"}
    assert own == {(case, label): dice[label] for case, dice in scored.items() for label in ("left", "right")}


def test_rate_and_start_of_the_prior_follow_the_fixed_mask(tried):
    dice = {}
    for row in read_rows(tried / "results" / "results.csv"):
        dice.setdefault(row["arm"], []).append(float(row["dice"]))
    assert dice["P W0, x P"] == pytest.approx(dice["REP3D_FIXED"], abs=2e-3)
    assert dice["W0, x 1"] != pytest.approx(dice["REP3D_FIXED"], abs=2e-3)


def test_a_finished_experiment_is_not_run_again(tried, box_template, monkeypatch, capsys):
    monkeypatch.setattr(runner.Trainer, "start", None)
    assert run(runner.main, runner.parse_args(arguments(box_template, tried, "rate_or_start"))) == 0
    assert capsys.readouterr().out == "rate_or_start: 5 of 5 runs are finished\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "rate_or_start"])
def test_every_experiment_runs_and_reports(name, box_template, tmp_path, capsys):
    status = run(runner.main, runner.parse_args(arguments(box_template, tmp_path, name, "--jobs", "2")))
    assert status == 0, capsys.readouterr().err
    results = ["--scale", "tiny", "--results", str(tmp_path / "results")]
    assert run(report.main, report.parse_args([name, *results])) == 0
    assert "unfinished" not in capsys.readouterr().out
    for measure in read_experiment(name, "tiny").measures:
        assert len(read_rows(tmp_path / "results" / f"{measure}.csv")) > 10


SMALL = """
--network REP3D --feat_size 4 4 4 4 --kernel_size 5 --roi_size 32 32 16 --max_iter 12 --eval_step 6 --cache_rate 1
--num_workers 0
"""
TWO_ARMS = Experiment(
    "two",
    "Is anything lost?",
    "a",
    {arm: [*SMALL.split(), "--lr", rate] for arm, rate in (("a", "1e-2"), ("b", "2e-2"))},
    (),
    "",
)


def two_arms(boxes, folder):
    folder.mkdir()
    trainer = runner.Trainer(TWO_ARMS, str(boxes), str(boxes / "boxes.json"), "cpu", 2, folder, lock=2)
    return trainer, Results(folder / "results", {"arms": ["a", "b"], "code": "0"}, ["a", "b"])


def test_a_stopped_experiment_goes_on_where_it_was(box_template, tmp_path):
    missing = [("a", 0), ("b", 0)]
    trainer, whole = two_arms(box_template, tmp_path / "whole")
    with StopRequests() as stop:
        runner.run_all(missing, trainer, whole, stop)

    trainer, results = two_arms(box_template, tmp_path / "stopped")
    Thread(target=ask_to_stop, args=(trainer.folder("a", 0),), daemon=True).start()
    with StopRequests() as stop, pytest.raises(Stopped, match="SIGTERM"):
        runner.run_all(missing, trainer, results, stop)
    assert not any(results.is_finished(*item) for item in missing)
    assert (trainer.folder("a", 0) / LAST).exists()
    assert results.runs["a, seed 0"]["seconds"] > 0
    with StopRequests() as stop:
        runner.run_all(missing, trainer, results, stop)
    assert "--resume" in (trainer.folder("a", 0).with_suffix(".log")).read_text()
    assert results.rows == whole.rows
    assert not list(trainer.output.glob(f"*/{LAST}"))


def ask_to_stop(folder):
    wait_for_iteration(folder / LAST, 6)
    signal.raise_signal(signal.SIGTERM)


def test_runs_go_seed_by_seed(box_template, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(runner, "run_all", lambda missing, *_: order.extend(missing))
    assert (
        run(runner.main, runner.parse_args([*arguments(box_template, tmp_path, "rate_or_start"), "--seeds", "2"])) == 0
    )
    arms = list(read_experiment("rate_or_start", "tiny").arms)
    assert order == [(arm, seed) for seed in (0, 1) for arm in arms]


# Bad input


def test_a_failing_arm_is_named(box_template, tmp_path):
    trainer, results = two_arms(box_template, tmp_path / "failing")
    broken = replace(trainer, experiment=replace(TWO_ARMS, arms={"b": ["--lr", "x"]}))
    message = r"^b, seed 0: main_train\.py: error: argument --lr: found 'x'"
    with StopRequests() as stop, pytest.raises(InputError, match=message):
        runner.run_all([("b", 0)], broken, results, stop)
    assert not results.is_finished("b", 0)


def test_two_runners_of_one_experiment(box_template, tmp_path, capsys):
    output = tmp_path / "runs" / "rate_or_start_tiny"
    output.mkdir(parents=True)
    with runner.locked(output):
        status = run(runner.main, runner.parse_args(arguments(box_template, tmp_path, "rate_or_start")))
    result = status, *capsys.readouterr()
    assert_one_line(result, "error: --output: found a process that runs in", "expected it to end first")


def write_results(folder, identity, rows, runs):
    folder.mkdir(exist_ok=True)
    (folder / "runs.json").write_text(json.dumps({**identity, "runs": runs}))
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", "case", "class", "dice", "code"])
        writer.writerows(rows)


IDENTITY = {"experiment": "e", "arms": {"a": "--lr 1", "b": "--lr 2"}, "data": "d1", "code": "c1"}


@pytest.mark.parametrize(
    ("saved", "rows", "message"),
    [
        ({"arms": {"a": "--lr 1", "b": "--lr 3"}}, [], r"another arms \(b\)"),
        ({"code": "c2"}, [], r"another code \(c2\)"),
        ({"data": "d2"}, [], "another data"),
        ({}, [("a", 0, "x", "y", 0.5, "c2")], r"rows of other code \(c2\), expected c1"),
        ({}, [("b", 0, "x", "y", 0.5, "c1")], "rows of b, seed 0, which runs.json does not"),
    ],
)
def test_results_of_something_else_are_refused(tmp_path, saved, rows, message):
    write_results(tmp_path, {**IDENTITY, **saved}, rows, {"a, seed 0": {"seconds": 1}})
    with pytest.raises(InputError, match=message):
        Results(tmp_path, IDENTITY, ["a", "b"])


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--root", "/nowhere"], ("error: --root: found no files in /nowhere/imagesTr",)),
        (["--budget_h", "0"], ("argument --budget_h", "above 0")),
        (["--scale", "huge"], ("argument --scale", "standard")),
    ],
)
def test_mistakes_are_one_line(box_template, tmp_path, capsys, more, parts):
    words = [sys.executable, "-m", "experiments.run", *arguments(box_template, tmp_path, "masks"), *more]
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert_one_line((ended.returncode, ended.stdout, ended.stderr), *parts)


# Report


def score_rows(scores):
    """Make rows of results.csv from arm -> seeds -> (cases, classes)."""
    return [
        {"arm": arm, "seed": str(seed), "case": f"c{case}", "class": label, "dice": "" if np.isnan(dice) else str(dice)}
        for arm, runs in scores.items()
        for seed, table in enumerate(runs)
        for case, line in enumerate(table)
        for label, dice in zip(("left", "right"), line, strict=True)
    ]


def test_table_by_hand():
    scores = {
        "plain": [[[0.8, 0.6], [0.7, 0.5]], [[0.8, 0.6], [0.7, 0.5]]],
        "better": [[[0.9, 0.7], [0.8, 0.6]], [[0.9, 0.9], [0.8, np.nan]]],
        "begun": [[[0.4, 0.2], [0.3, 0.1]]],
    }
    table = report.make_table(*report.collect(score_rows(scores)), ["plain", "better", "begun", "waiting"], "plain")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    cells = {name: row for name, *row in rows}
    assert cells["plain"][:4] == ["2", "0.650 ± 0.000", "0.750 ± 0.000", "0.550 ± 0.000"]
    # Means 0.75 and (0.85 + 0.9) / 2; the class that is absent from a case is left out.
    assert cells["better"][:4] == ["2", "0.812 ± 0.088", "0.850 ± 0.000", "0.775 ± 0.177"]
    # Cases: (0.8 + 0.9) / 2 - 0.7, and classes without a seed's score are NaN, so the second case has 0.8 - 0.6.
    assert cells["better"][4].startswith("+0.1")
    assert cells["begun"][0] == "1 of 2, unfinished"
    assert cells["begun"][4].startswith("-0.400 (-0.400 to -0.400)")
    assert cells["waiting"] == ["0 of 2, unfinished", "", "", "", "", ""]


def test_an_unfinished_experiment_is_drawn(tmp_path, capsys):
    rows = score_rows({"W0, x 1": [[[0.8, 0.6]]], "P W0, x 1": [[[0.7, 0.6]]]})
    with open(tmp_path / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert run(report.main, report.parse_args(["rate_or_start", "--results", str(tmp_path)])) == 0
    assert capsys.readouterr().out.count("unfinished") == 3
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_a_report_without_results(tmp_path, capsys):
    status = run(report.main, report.parse_args(["masks", "--results", str(tmp_path)]))
    assert_one_line((status, *capsys.readouterr()), "error: --results: found no", "results.csv")


@pytest.mark.parametrize("name", NAMES)
def test_committed_tables_are_those_of_the_results(name):
    for scale in SCALES:
        results = FOLDER / name / scale / "results.csv"
        if results.exists():
            experiment = read_experiment(name, scale)
            table = report.make_table(*report.collect(read_rows(results)), list(experiment.arms), experiment.reference)
            assert table in (FOLDER / name / "README.md").read_text()

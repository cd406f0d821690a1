"""Experiments: their tables of arms, the runner that can be stopped anywhere, and what it refuses."""

import json
import signal
import subprocess
import tomllib
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY, assert_one_line, run_here, train_here, wait_for_iteration

import main_train
from engine.runtime.arguments import network_overrides
from engine.runtime.child_processes import locked
from engine.runtime.errors import InputError, Stopped, run
from engine.runtime.files import LAST, read_csv, write_csv
from engine.runtime.stop_requests import StopRequests
from engine.weights.load_network import load_trained
from experiments import report
from experiments import run as runner
from experiments.experiment import FOLDER, NAMES, SCALES, Experiment, read_experiment
from experiments.results import Results, digest_code, digest_files, read_table
from experiments.trainer import FINAL, Trainer
from networks import build_network

EVERY_ARM = [(name, arm) for name in NAMES for arm in read_experiment(name, "standard").arms]


def arguments(boxes, tmp_path, name, *more):
    data = ["--root", str(boxes), "--dataset", str(boxes / "boxes.json"), "--scale", "tiny", "--seeds", "1"]
    return [name, *data, "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), *more]


@pytest.mark.parametrize(("name", "arm"), EVERY_ARM)
def test_every_arm_is_a_valid_command(name, arm):
    for scale in SCALES:
        experiment = read_experiment(name, scale)
        if arm not in experiment.arms and scale == "full":
            continue
        flags = ["--root", "r", "--output", "o", "--dataset", experiment.dataset, *experiment.arms[arm]]
        args = main_train.parse_args(flags)
        if scale == "standard":
            with torch.device("meta"):
                network = build_network(args.network, 1, 3, args.roi_size, **network_overrides(args))
            assert sum(parameter.numel() for parameter in network.parameters()) < 5e6  # small, for two CPU cores


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_every_arm_is_another_one(name, scale):
    flags = [tuple(flags) for flags in read_experiment(name, scale).arms.values()]
    assert len(set(flags)) == len(flags)


@pytest.mark.parametrize("name", NAMES)
def test_compared_arms_are_arms(name):
    table = tomllib.loads((FOLDER / name / "arms.toml").read_text())
    compared = [*table.get("also_with", {}).items(), *((arm, table["reference"]) for arm in table["arms"])]
    assert {arm for pair in compared for arm in pair} == set(table["arms"])
    found = read_experiment(name, "standard").comparisons
    assert all(arm != other for arm, other in found)
    assert len(set(found)) == len(found) == len(compared) - 1  # an arm is not compared with itself


def train_one(trainer, arm, seed):
    """Train a run in this process, which is faster than the start of another, in place of ``Trainer.start``."""
    status = train_here(*trainer.command(arm, seed)[1:])
    return SimpleNamespace(wait=lambda: status)


@contextmanager
def training_here():
    """Let the runner of experiments train in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(Trainer, "start", train_one)
        yield


@pytest.fixture(scope="module")
def tried(box_template, tmp_path_factory):
    """Folder of a finished experiment: five networks, of which the last two are the same in other words."""
    folder = tmp_path_factory.mktemp("rate_or_start")
    with training_here():
        assert run_here("experiments.run", *arguments(box_template, folder, "rate_or_start", "--jobs", "2")) == 0
    return folder


def test_results_have_a_row_per_case_and_class(tried):
    rows = read_csv(tried / "results" / "results.csv")
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
    (folder,) = (tried / "runs").glob("rate_or_start_tiny_*/REP3D_FIXED_0")
    assert {path.name for path in folder.iterdir()} == {
        *("args.json", "versions.json", "dice.csv", "dice.json", "tensorboard", FINAL)
    }
    assert load_trained(folder / FINAL, "").content["iteration"] == 2
    scored = json.loads((folder / "dice.json").read_text())["cases"]
    own = {(row["case"], row["class"]): float(row["dice"]) for row in rows if row["arm"] == "REP3D_FIXED"}
    assert own == {(case, label): dice[label] for case, dice in scored.items() for label in ("left", "right")}


def test_rate_and_start_of_the_prior_follow_the_fixed_mask(tried):
    dice = {}
    for row in read_csv(tried / "results" / "results.csv"):
        dice.setdefault(row["arm"], []).append(float(row["dice"]))
    assert dice["P W0, x P"] == pytest.approx(dice["REP3D_FIXED"], abs=2e-3)
    assert dice["W0, x 1"] != pytest.approx(dice["REP3D_FIXED"], abs=2e-3)


def test_a_finished_experiment_is_not_run_again(tried, box_template, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "start", None)
    assert run(runner.main, runner.parse_args(arguments(box_template, tried, "rate_or_start"))) == 0
    assert capsys.readouterr().out == "rate_or_start: 5 of 5 runs are finished\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "rate_or_start"])
def test_every_experiment_runs_and_reports(name, box_template, tmp_path, capsys):
    with training_here():
        status = run(runner.main, runner.parse_args(arguments(box_template, tmp_path, name, "--jobs", "2")))
    assert status == 0, capsys.readouterr().err
    results = ["--scale", "tiny", "--results", str(tmp_path / "results")]
    assert run(report.main, report.parse_args([name, *results])) == 0
    assert " 0 of 3, unfinished" not in capsys.readouterr().out  # every arm has its one seed
    for measure in read_experiment(name, "tiny").measures:
        assert read_csv(tmp_path / "results" / f"{measure}.csv")
        assert (tmp_path / "results" / f"{measure}.png").stat().st_size > 5000


SMALL = """
--network REP3D --feat_size 4 4 4 4 --kernel_size 5 --roi_size 32 32 16 --max_iter 12 --eval_step 6 --cache_rate 1
--num_workers 0
"""
TWO_ARMS = Experiment(
    "two",
    [("b", "a")],
    {arm: [*SMALL.split(), "--lr", rate] for arm, rate in (("a", "1e-2"), ("b", "2e-2"))},
    (),
    "",
)


def two_arms(boxes, folder):
    (folder / "results").mkdir(parents=True)
    trainer = Trainer(TWO_ARMS, boxes, str(boxes / "boxes.json"), "cpu", 2, folder, lock=2, commit="c")
    return trainer, Results(folder / "results", {"arms": {"a": "", "b": ""}, "code": digest_code()}, ["a", "b"])


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
    assert "--resume" in trainer.log("a", 0).read_text()
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


def test_after_a_failure_nothing_is_started(box_template, tmp_path):
    trainer, results = two_arms(box_template, tmp_path / "failing")
    broken = replace(trainer, jobs=1, experiment=replace(TWO_ARMS, arms={arm: ["--lr", "x"] for arm in "ab"}))
    message = r"^a, seed 0: main_train\.py: error: argument --lr: found 'x', expected a number from 0$"
    with StopRequests() as stop, pytest.raises(InputError, match=message):
        runner.run_all([("a", 0), ("b", 0)], broken, results, stop)
    assert results.rows == {}
    assert not trainer.log("b", 0).exists()


@pytest.mark.parametrize(
    ("log", "quoted"),
    [("", ""), ("step 1\rstep 2\nterminate called\n\n", " after the line 'terminate called'")],
)
def test_a_run_that_was_killed_is_named(box_template, tmp_path, monkeypatch, log, quoted):
    trainer, results = two_arms(box_template, tmp_path / "killed")
    trainer.log("a", 0).write_text(log)
    monkeypatch.setattr(Trainer, "start", lambda *_: subprocess.Popen(["sh", "-c", "kill -9 $$"]))
    message = rf"^a, seed 0: killed by SIGKILL{quoted}, see .*a_0\.log$"
    with StopRequests() as stop, pytest.raises(InputError, match=message):
        runner.run_all([("a", 0)], trainer, results, stop)


def test_a_stop_while_runs_start_is_no_failure(box_template, tmp_path, monkeypatch):
    """SIGTERM ends a process that has not yet got to main_train's own handling of it."""
    trainer, results = two_arms(box_template, tmp_path / "early")

    def start(*_):
        signal.raise_signal(signal.SIGTERM)
        return subprocess.Popen(["sleep", "60"])

    monkeypatch.setattr(Trainer, "start", start)
    with StopRequests() as stop, pytest.raises(Stopped):
        runner.run_all([("a", 0), ("b", 0)], trainer, results, stop)


def test_code_that_changes_while_an_experiment_runs(box_template, tmp_path):
    trainer, results = two_arms(box_template, tmp_path / "changed")
    results.identity["code"] = "0"
    message = r"^the training code has changed since the start \(from 0 to "
    with StopRequests() as stop, pytest.raises(InputError, match=message):
        runner.run_all([("a", 0)], trainer, results, stop)


def test_two_runners_with_the_same_results(box_template, tmp_path, capsys):
    with locked(tmp_path / "results", "--results"):
        status = run(runner.main, runner.parse_args(arguments(box_template, tmp_path, "rate_or_start")))
    result = status, *capsys.readouterr()
    assert_one_line(result, "error: --results: found a process that runs in", "expected it to end first")


def test_a_run_holds_the_lock_of_its_runner(box_template, tmp_path):
    """So that no second runner resumes what a killed one has left running."""
    trainer, _ = two_arms(box_template, tmp_path / "held")
    with locked(trainer.output, "--output") as lock:
        process = replace(trainer, lock=lock).start("a", 0)
    with pytest.raises(InputError, match="found a process"), locked(trainer.output, "--output"):
        pass
    process.kill()
    process.wait()


@pytest.mark.parametrize(("digest", "values"), [("digest_code", ("c1", "c2")), ("digest_files", ({}, {"f": "f1"}))])
def test_other_code_or_files_train_in_another_folder(box_template, tmp_path, monkeypatch, digest, values):
    """Otherwise a new folder of results would be filled by resuming the runs of the old code."""
    folders = []
    monkeypatch.setattr(runner, "run_all", lambda _, trainer, *__: folders.append(trainer.output))
    for count, value in enumerate(values):
        monkeypatch.setattr(runner, digest, lambda *_, value=value: value)
        command = arguments(box_template, tmp_path, "rate_or_start", "--results", str(tmp_path / str(count)))
        assert run(runner.main, runner.parse_args(command)) == 0
    assert len(set(folders)) == 2


def write_results(folder, identity, rows, runs):
    folder.mkdir(exist_ok=True)
    (folder / "runs.json").write_text(json.dumps({**identity, "runs": runs}))
    write_csv(folder / "results.csv", ["arm", "seed", "code", "case", "class", "dice"], rows)


IDENTITY = {"experiment": "e", "arms": {"a": "--lr 1", "b": "--lr 2"}, "data": "d1", "code": "c1", "files": {"f": "f1"}}
ROW = ("a", 0, "c1", "x", "y", 0.5)


@pytest.mark.parametrize(
    ("saved", "rows", "message"),
    [
        ({"arms": {"a": "--lr 1", "b": "--lr 3"}}, [], r"holds runs of other arms \(b\), expected the same"),
        ({"code": "c2"}, [], r"other code \(c2\)"),
        ({"data": "d2"}, [], r"other data \(d2\)"),
        ({"files": {"f": "f2"}}, [], r"other files \(f\)"),
        ({}, [ROW, ("a", 0, "c2", "x", "z", 0.5)], r"rows of other code \(c2\), expected c1 in every row"),
        ({}, [("b", *ROW[1:])], r"rows of b, seed 0, which runs\.json does not"),
        ({}, [("c", *ROW[1:])], "rows of c, expected arms of this experiment"),
        ({}, [], r"results\.csv is damaged, expected rows"),
        ({}, [("a", "x", *ROW[2:])], "is damaged, expected rows, each with the seed of its run"),
        ({}, [(*ROW[:-1], "abc")], "holds the Dice 'abc', expected numbers from 0 to 1"),
        ({}, [(*ROW[:-1], 1.5)], "holds the Dice '1.5', expected numbers from 0 to 1"),
        ({}, [(*ROW[:-1], 0.25), ROW], "holds 2 rows of a, seed 0, expected one for each of 1 cases and classes"),
        (
            {},
            [ROW, ("a", 0, "c1", "x2", "y", 0.5), ("a", 1, *ROW[2:])],
            "holds 1 rows of a, seed 1, expected one for each of 2 cases and classes",
        ),
    ],
)
def test_results_of_something_else_are_refused(tmp_path, saved, rows, message):
    write_results(tmp_path, {**IDENTITY, **saved}, rows, {"a, seed 0": {"seconds": 1}})
    with pytest.raises(InputError, match=message):
        Results(tmp_path, IDENTITY, ["a", "b"])


def test_further_tables_are_read_before_anything_is_trained(tmp_path):
    write_results(tmp_path, IDENTITY, [ROW], {"a, seed 0": {"seconds": 1}})
    write_csv(tmp_path / "masks.csv", ["arm", "seed", "code", "value"], [("a", 0, "c2", 1.0)])
    with pytest.raises(InputError, match=r"masks\.csv holds rows of other code \(c2\), expected c1"):
        Results(tmp_path, IDENTITY, ["a", "b"])


def test_rows_of_another_pytorch_are_those_of_other_code(monkeypatch):
    before = digest_code()
    monkeypatch.setattr("experiments.results.version", lambda package: "0.1")
    assert digest_code() != before


def test_other_content_of_a_file_that_an_arm_names_trains_something_else(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.results.ROOT", tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"old")
    flags = ["--lr", "4", "--pretrained_weights", "weights.pth"]
    before = digest_files(flags)
    assert before.keys() == {"weights.pth"}
    (tmp_path / "weights.pth").write_bytes(b"new")
    assert digest_files(flags) != before


def test_a_scale_without_arms(box_template, tmp_path, capsys):
    status = run(runner.main, runner.parse_args([*arguments(box_template, tmp_path, "finetuning"), "--scale", "full"]))
    result = status, *capsys.readouterr()
    assert_one_line(result, "--scale: found no arms of finetuning at full, expected another scale")


@pytest.mark.parametrize("damage", ["{", "[]", '{"runs": {"a, seed 0": {}}}'])
def test_a_damaged_runs_file(tmp_path, damage):
    (tmp_path / "runs.json").write_text(damage)
    with pytest.raises(InputError, match=r"runs\.json is damaged"):
        Results(tmp_path, IDENTITY, ["a", "b"])


def test_a_table_without_its_columns(tmp_path):
    write_csv(tmp_path / "results.csv", ["arm", "seed"], [("a", 0)])
    with pytest.raises(InputError, match="lacks columns"):
        read_table(tmp_path / "results.csv", ["a"])


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--root", "/nowhere"], ("error: --root: found no files in /nowhere/imagesTr",)),
        (["--dataset", "/nowhere.json"], ("error: --dataset: ",)),
        (["--results", "README.md"], ("error: --results: README.md cannot be made",)),
        (["--budget_h", "0"], ("argument --budget_h", "above 0")),
        (["--scale", "huge"], ("argument --scale", "standard")),
    ],
)
def test_mistakes_are_one_line(box_template, tmp_path, capsys, more, parts):
    try:
        status = run(runner.main, runner.parse_args([*arguments(box_template, tmp_path, "masks"), *more]))
    except SystemExit as stop:
        status = stop.code
    assert_one_line((status, *capsys.readouterr()), *parts)

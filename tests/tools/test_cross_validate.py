"""Cross-validation: folds are trained, resumed and left out; the table of all cases; what is missing is named."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY, blank_pictures, run_here, train_arguments, wait_for_iteration

from engine.data.division import divide
from engine.data.split_file import SplitFile, write_split_file
from engine.evaluation.metrics import DiceTable
from engine.runtime.errors import STOPPED, run
from engine.runtime.files import read_csv
from tools import cross_validate

IDS = ["box_0", "box_1", "box_2", "box_8", "box_9"]
FOLDS, _ = divide(IDS, 0, 2)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    path = tmp_path_factory.mktemp("split") / "split.json"
    write_split_file(path, SplitFile("mine", "made up", 0, FOLDS))
    return path


@pytest.fixture
def call(box_template, split, tmp_path, capfd):
    """Run the tool; returns (exit status, stdout, error lines)."""

    def run_tool(*words):
        data = ["--root", box_template, "--split", split, "--output", tmp_path / "cv"]
        try:
            status = run(cross_validate.main, cross_validate.parse_args([str(word) for word in [*data, *words]]))
        except SystemExit as stop:
            status = stop.code
        captured = capfd.readouterr()
        return status, captured.out, [line for line in captured.err.splitlines() if "error: " in line]

    return run_tool


def training_words(root, *more):
    """Flags of main_train.py without those that the tool sets."""
    words = [str(word) for word in train_arguments(root, "unused", "--max_iter", "2", *more)]
    return words[words.index("--dataset") :]


def run_scripts_here(patch):
    """Run the scripts in this process, which is faster; other tests start them as processes."""
    patch.setattr(cross_validate, "run_script", lambda command, *_: run_here(*command[1:]))
    blank_pictures(patch)


@pytest.fixture(scope="module")
def one_fold(box_template, split, tmp_path_factory):
    """Output of a call for fold 1 alone."""
    output = tmp_path_factory.mktemp("one_fold") / "cv"
    words = ["--root", box_template, "--split", split, "--output", output, "--folds", "1"]
    words += training_words(box_template)
    with pytest.MonkeyPatch.context() as patch:
        run_scripts_here(patch)
        assert run(cross_validate.main, cross_validate.parse_args([str(word) for word in words])) == 0
    return output


def write_dice(folder, dice, names=("left", "right")):
    """Write a fold's dice.json; ``dice`` has the values of each case."""
    folder.mkdir(parents=True)
    table = DiceTable(names)
    for case, values in dice.items():
        table.add(case, np.array(values))
    table.write(folder)


@pytest.fixture
def collected(tmp_path):
    """Dice of both folds; one case has no right box."""
    values = iter(np.linspace(0.5, 0.95, 10).reshape(5, 2).tolist())
    dice = [{name: next(values) for name in fold["validation"]} for fold in FOLDS]
    dice[0][FOLDS[0]["validation"][0]][1] = np.nan
    for number, cases in enumerate(dice):
        write_dice(tmp_path / "cv" / f"fold_{number}" / "predictions", cases)
    return dice


def test_the_table_is_that_of_all_cases(call, collected, tmp_path):
    status, out, errors = call("--collect_only")
    assert (status, errors) == (0, [])
    left = [[cases[name][0] for name in cases] for cases in collected]
    right = [[cases[name][1] for name in cases if not np.isnan(cases[name][1])] for cases in collected]
    report = json.loads((tmp_path / "cv" / "dice.json").read_text())
    for name, values in {"left": left, "right": right}.items():
        assert report["mean over cases"][name] == pytest.approx(np.mean(np.concatenate(values)), abs=1e-6)
        means = list(map(np.mean, values))
        assert report["mean over folds"][name] == pytest.approx(np.mean(means), abs=1e-6)
        assert report["SD over folds"][name] == pytest.approx(statistics.stdev(means), abs=1e-6)
        assert [fold[name] for fold in report["folds"].values()] == pytest.approx(means, abs=1e-6)
    both = np.mean([report["mean over cases"][name] for name in ("left", "right")])
    assert report["mean over cases"]["mean"] == pytest.approx(both, abs=1e-6)
    assert sorted(row["case"] for row in report["cases"]) == IDS
    assert {row["fold"] for row in report["cases"]} == {0, 1}
    rows = read_csv(tmp_path / "cv" / "dice.csv")
    assert [row["case"] for row in rows[-3:]] == ["mean over cases", "mean over folds", "SD over folds"]
    assert float(rows[-3]["left"]) == report["mean over cases"]["left"]
    (absent,) = [row for row in rows if row["right"] == ""]
    assert (absent["fold"], absent["case"]) == ("0", FOLDS[0]["validation"][0])
    assert out.splitlines()[0] == "Dice of 5 cases in 2 folds"
    cells = next(line.split() for line in out.splitlines() if line.startswith("left"))
    assert cells[1] == f"{report['mean over cases']['left']:.3f}"


def test_what_is_missing_is_named_and_the_rest_is_tabulated(call, collected, tmp_path):
    path = tmp_path / "cv" / "fold_1" / "predictions" / "dice.json"
    (missing, *_), table = FOLDS[1]["validation"], json.loads(path.read_text())
    del table["cases"][missing]
    path.write_text(json.dumps(table))
    status, out, errors = call("--collect_only")
    assert status == 1
    (line,) = errors
    assert f"fold 1: found no Dice of 1 of {len(FOLDS[1]['validation'])} validation cases" in line
    assert missing in line
    assert "in 1 fold" in out.splitlines()[0]
    assert json.loads((tmp_path / "cv" / "dice.json").read_text())["SD over folds"]["mean"] is None


def test_nothing_there_is_a_line_per_fold(call, tmp_path):
    status, out, errors = call("--collect_only")
    assert (status, out, len(errors)) == (1, "", 2)
    assert not (tmp_path / "cv" / "dice.csv").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"cases": {}}', '{"cases": {"a": 1}}', "[]"])
def test_a_damaged_table_counts_as_missing(call, collected, tmp_path, text):
    (tmp_path / "cv" / "fold_0" / "predictions" / "dice.json").write_text(text)
    status, _, errors = call("--collect_only")
    assert (status, "fold 0: found no Dice" in errors[0]) == (1, True)


def test_predictions_of_another_split_are_refused(call, collected, tmp_path):
    path = tmp_path / "cv" / "fold_0" / "predictions" / "dice.json"
    table = json.loads(path.read_text())
    table["cases"]["box_7"] = next(iter(table["cases"].values()))
    path.write_text(json.dumps(table))
    status, _, errors = call("--collect_only")
    assert (status, "fold 0: found box_7" in errors[0]) == (2, True)


def test_folds_of_different_classes_are_refused(call, collected, tmp_path):
    folder = tmp_path / "cv" / "fold_1" / "predictions"
    (folder / "dice.json").unlink()
    (folder / "dice.csv").unlink()
    folder.rmdir()
    write_dice(folder, {name: [0.5, 0.6] for name in FOLDS[1]["validation"]}, ("left", "middle"))
    status, _, errors = call("--collect_only")
    assert (status, "found folds of different classes" in errors[0]) == (2, True)


def test_one_fold_is_trained_without_a_table_of_all(one_fold):
    assert sorted(path.name for path in one_fold.iterdir()) == ["fold_1"]


def test_folds_are_trained_predicted_tabulated_and_left_out_the_next_time(
    call, one_fold, box_template, tmp_path, monkeypatch
):
    run_scripts_here(monkeypatch)
    shutil.copytree(one_fold, tmp_path / "cv")
    recipe = tmp_path / "boxes.args"
    recipe.write_text(" ".join(training_words(box_template)))
    status, out, errors = call(f"@{recipe}")
    assert (status, errors) == (0, [])
    lines = [line for line in out.splitlines() if line.startswith("fold ")]
    assert lines == ["fold 0: main_train.py", "fold 0: test_seg.py", "fold 1: finished already"]
    report = json.loads((tmp_path / "cv" / "dice.json").read_text())
    for number, fold in enumerate(FOLDS):
        assert sorted(row["case"] for row in report["cases"] if row["fold"] == number) == list(fold["validation"])
    monkeypatch.setattr(cross_validate, "run_script", None)
    assert call(f"@{recipe}")[0] == 0


def test_other_flags_are_left_to_main_train(call, one_fold, box_template, tmp_path, monkeypatch):
    shutil.copytree(one_fold, tmp_path / "cv")
    words = training_words(box_template)
    status, _, errors = call("--folds", "1", "--", *words, "--lr", "0.5")
    assert status == 2
    assert "--lr: found 0.5, expected 0.0001 as in the run to resume" in errors[0]
    assert "fold 1: main_train.py ended with exit status 2" in errors[1]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads((box_template / "boxes.json").read_text()), "spacing": [2, 2, 2]}))
    scripts = []
    monkeypatch.setattr(cross_validate, "run_script", lambda command, *_: scripts.append(command[1]) or STOPPED)
    for more in (["--batch_size", "7"], ["--dataset", other]):
        assert call("--folds", "1", "--", *words, *more)[0] == STOPPED
    assert scripts == [str(REPOSITORY / "main_train.py")] * 2


def test_a_begun_fold_is_resumed_after_a_stop(call, box_template, split, tmp_path, monkeypatch):
    output = tmp_path / "cv"
    data = ["--root", box_template, "--split", split, "--output", output]
    words = [*training_words(box_template), "--max_iter", "2000"]
    command = [sys.executable, "-m", "tools.cross_validate", *map(str, data), *words]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_iteration(output / "fold_0" / "last_checkpoint.pth", 2)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == STOPPED
    assert err.splitlines()[-1] == "stopped by SIGTERM"
    commands = []
    monkeypatch.setattr(cross_validate, "run_script", lambda command, *_: commands.append(command) or STOPPED)
    assert call(*words)[0] == STOPPED
    (resumed,) = commands
    assert (resumed[1], resumed[-1]) == (str(REPOSITORY / "main_train.py"), "--resume")


def test_a_fold_that_stops_itself_stops_the_command(call, box_template, monkeypatch):
    commands = []

    def stop_at_once(command, *_):
        commands.append(command)
        return STOPPED

    monkeypatch.setattr(cross_validate, "run_script", stop_at_once)
    assert call(*training_words(box_template))[0] == STOPPED
    assert len(commands) == 1


BAD_WORDS = {
    "no such fold": (["--folds", "2"], "--fold: found 2, expected 0 to 1"),
    "no dataset": ([], "the following arguments are required: --dataset"),
    "an unknown flag": (["--dataset", "amos", "--slow"], "unrecognized arguments: --slow"),
    "no such recipe": (["@none.args"], "@none.args: cannot be read"),
}


@pytest.mark.parametrize(("words", "expected"), BAD_WORDS.values(), ids=BAD_WORDS)
def test_bad_input_is_one_line(call, words, expected):
    status, _, errors = call(*words)
    assert status == 2
    (line,) = errors
    assert expected in line

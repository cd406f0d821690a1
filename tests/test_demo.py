"""make demo: its commands fit together, and the files that it names at the end are among those that they write."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY

import main_train
import test_seg as predict_script
from engine.data.datasets import AMOS_ORGANS, find_description
from engine.prediction.outputs import picture_path
from engine.runtime.files import read_csv
from tools import make_phantoms, report

PARSERS = {
    "tools.make_phantoms": make_phantoms.parse_args,
    "main_train.py": main_train.parse_args,
    "test_seg.py": predict_script.parse_args,
    "tools.report": report.parse_args,
}


@pytest.fixture
def lines():
    """Shell lines of the target."""
    (target,) = re.findall(r"^demo:.*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    return target.replace("\\\n", " ").splitlines()


@pytest.fixture
def demo(lines, monkeypatch):
    """Arguments of make_phantoms, main_train, test_seg and report."""
    monkeypatch.chdir(REPOSITORY)  # where make runs, and the file of flags is found
    words = [shlex.split(line) for line in lines if line.startswith("\t$(BIN)/python ")]
    commands = [line[2:] if line[1] == "-m" else line[1:] for line in words]
    assert [name for name, *_ in commands] == list(PARSERS)
    return [PARSERS[name](arguments) for name, *arguments in commands]


def test_each_command_reads_what_an_earlier_one_writes(demo):
    data, training, prediction, page = demo
    assert training.root == prediction.root == str(data.root)
    assert prediction.trained_weights == [f"{training.output}/best_metric_model.pth"]
    assert (page.run, page.predictions) == (training.output, prediction.output)


def test_the_files_named_at_the_end_are_written(demo, lines):
    data, _, prediction, page = demo
    named = dict(re.findall(r"(\S+) \((picture|table|report)\)", "".join(lines)))
    first = f"phantom_{data.train + 1:03d}"  # of the validation cases, which are predicted
    assert prediction.preview
    picture = str(picture_path(Path(prediction.output), first))
    assert named == {picture: "picture", f"{prediction.output}/dice.csv": "table", page.output: "report"}


def test_the_description_names_the_organs_of_the_phantoms_as_amos_does(demo):
    classes = find_description(demo[1].dataset).classes
    drawn = {shape.label for shape in make_phantoms.ORGANS} - {0}
    assert {classes[label] for label in drawn} == {AMOS_ORGANS[label] for label in drawn}


def means(seed):
    """Read the mean Dice by organ, and over the organs, of a committed run of the demo."""
    *_, last = read_csv(REPOSITORY / "experiments" / "demo" / "scores" / f"seed_{seed}.csv")
    return {name: float(value) for name, value in last.items() if name != "case" and value}


def test_every_organ_is_learned_in_the_committed_runs():
    for seed in (0, 1):
        assert len(means(seed)) == 10  # nine organs and their mean
        assert means(seed)["mean"] > 0.85
        assert min(means(seed).values()) > 0.7


def test_the_pages_have_the_scores():
    page = (REPOSITORY / "experiments" / "demo" / "README.md").read_text()
    assert f"| {' | '.join(means(0))} |" in page
    for seed, title in enumerate(("the demo, seed 0", "phantoms and training with seed 1")):
        assert f"| {title} | {' | '.join(f'{dice:.3f}' for dice in means(seed).values())} |" in page
    organs = {name: dice for name, dice in means(0).items() if name != "mean"}
    best, worst = max(organs, key=organs.__getitem__), min(organs, key=organs.__getitem__)
    found = f"mean Dice {means(0)['mean']:.2f}, from {organs[best]:.2f} ({best}) to {organs[worst]:.2f} ({worst})"
    assert found in " ".join((REPOSITORY / "README.md").read_text().split())

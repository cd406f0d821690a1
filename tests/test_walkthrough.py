"""The commands of docs/walkthrough.md, from an archive to a report, with fewer iterations."""

import csv
import itertools
import json
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO

import pytest
from conftest import REPOSITORY, run_here

from engine.runtime import child_processes

PAGE = REPOSITORY / "docs" / "walkthrough.md"
FEWER = {"--max_iter": "4", "--eval_step": "2", "--scale": "4"}  # in place of the page's values

pytestmark = pytest.mark.slow


def commands():
    """Yield the words of each command of the page: a script, or a module, and its arguments."""
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line)
            assert program == ".venv/bin/python"
            fewer = [FEWER.get(before, word) for before, word in itertools.pairwise([program, *words])]
            yield fewer[1:] if fewer[0] == "-m" else fewer


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Folder in which all commands were run, one after the other, and what they printed."""
    folder = tmp_path_factory.mktemp("walk")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # The scripts that cross_validate starts run here as well: tests of its own start them as processes.
        patch.setattr(child_processes, "run_script", lambda command, *_: run_here(*command[1:]))
        for words in commands():
            with redirect_stdout(StringIO()) as shown:
                assert run_here(*words) == 0, shlex.join(words)
            printed.append(shown.getvalue())
    return folder / "walkthrough", printed


def test_every_step_leaves_what_the_page_says(walked):
    folder, printed = walked
    assert len(printed) == 9
    split = json.loads((folder / "split.json").read_text())
    assert ([len(fold["validation"]) for fold in split["folds"]], len(split["test"])) == ([3, 3, 3], 3)
    assert not list(folder.glob("data/imagesVal"))
    for fold in range(3):
        predictions = (folder / "folds" / f"fold_{fold}" / "predictions").glob("*_seg.nii.gz")
        found = sorted(path.name.removesuffix("_seg.nii.gz") for path in predictions)
        assert found == sorted(split["folds"][fold]["validation"])
    for name in ("ensemble", "single"):
        found = sorted(path.name.removesuffix("_seg.nii.gz") for path in (folder / name).glob("*_seg.nii.gz"))
        assert found == sorted(split["test"])
    assert len(list((folder / "ensemble").glob("*.png"))) == 3
    with open(folder / "scores" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["case"]) for row in rows} == {
        (method, case) for method in ("ensemble", "single") for case in split["test"]
    }
    assert (folder / "scores" / "comparison.png").stat().st_size > 0


def test_one_hash_runs_through_all_steps(walked):
    folder, printed = walked
    shown = json.loads((folder / "split.json").read_text())["hash"][:12]
    split_of = [text for text in printed if f"hash {shown}" in text]
    assert len(split_of) == 4  # made, trained, and predicted twice
    assert shown in (folder / "report.html").read_text()


def test_evaluation_and_prediction_agree(walked):
    folder, _ = walked
    with open(folder / "ensemble" / "dice.csv", newline="") as file:
        by_case = {row.pop("case"): row for row in csv.DictReader(file)}
    with open(folder / "scores" / "scores.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] == "ensemble" and row["dice"]:
                assert float(row["dice"]) == pytest.approx(float(by_case[row["case"]][row["class"]]), abs=1e-5)

"""Seeded splits from a folder or a list of ids, and bad input."""

import json
import shutil

import pytest
from conftest import DESCRIPTION

from engine.data.division import divide
from engine.data.split_file import read_split_file
from engine.runtime.errors import run
from tools import make_split

IDS = [f"case_{number:02d}" for number in range(23)]


@pytest.fixture
def make(tmp_path, capsys):
    """Run the tool; returns (exit status, stdout, stderr)."""

    def run_tool(*words):
        try:
            status = run(make_split.main, make_split.parse_args([str(word) for word in words]))
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_tool


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("\n".join([*IDS, "", ""]))
    return path


def test_a_list_of_ids_becomes_a_file(make, listed, tmp_path):
    output = tmp_path / "split.json"
    words = ("--ids", listed, "--folds", "3", "--seed", "7", "--test", "0.1", "--output", output)
    status, out, _ = make(*words, "--name", "mine", "--source", "a paper")
    assert status == 0
    found = read_split_file(output)
    assert (found.name, found.seed, len(found.folds), len(found.test)) == ("mine", 7, 3, 2)
    assert found.provenance == "a paper; 23 ids divided by make_split --folds 3 --test 0.1 --seed 7"
    assert (found.folds[0]["training"], found.test) == (
        tuple(divide(IDS, 7, 3, None, 0.1)[0][0]["training"]),
        divide(IDS, 7, 3, None, 0.1)[1],
    )
    assert out.splitlines()[0].startswith("mine, fold 0 of 3, hash ")
    assert make(*words, "--name", "mine", "--source", "a paper")[0] == 0  # the same file again
    status, _, err = make(*words)
    assert (status, f"--output: found another {output}, which is kept" in err) == (2, True)


def test_the_cases_of_a_folder_are_those_with_a_label(make, boxes, tmp_path):
    shutil.copytree(boxes / "imagesVal", boxes / "imagesTs")
    for number, path in enumerate(sorted((boxes / "imagesTs").iterdir())):
        path.rename(path.with_name(f"unlabelled_{number}.nii.gz"))
    output = tmp_path / "split.json"
    (boxes / "labels.json").write_text(json.dumps({"name": "boxes", "labels": DESCRIPTION["labels"]}))
    status, _, _ = make("--root", boxes, "--dataset", boxes / "labels.json", "--folds", "2", "--output", output)
    assert status == 0
    fold = read_split_file(output).folds[0]
    assert sorted([*fold["training"], *fold["validation"]]) == ["box_0", "box_1", "box_2", "box_8", "box_9"]


BAD_WORDS = {
    "nothing": ([], "expected either --root and --dataset, or --ids"),
    "both": (["--root", "a", "--dataset", "amos", "--ids", "b"], "expected either --root and --dataset, or --ids"),
    "no dataset": (["--root", "a"], "expected either --root and --dataset, or --ids"),
    "one fold": (["--ids", "ids.txt", "--folds", "1"], "--folds: found '1', expected a whole number from 2"),
    "two ways": (["--ids", "ids.txt", "--folds", "3", "--validation", "0.1"], "--validation: found it with --folds"),
    "whole share": (["--ids", "ids.txt", "--test", "1"], "--test: found '1', expected a number from 0 to below 1"),
    "no root": (["--root", "none", "--dataset", "amos"], "--root: none not found"),
    "no ids": (["--ids", "none.txt"], "--ids: none.txt cannot be read"),
    "an id twice": (["--ids", "twice.txt"], "--ids: twice.txt: found a twice"),
    "no text": (["--ids", "binary.txt"], "--ids: binary.txt is not UTF-8"),
    "too few": (["--ids", "few.txt"], "--folds, --test: found 2 cases"),
    "no folder": (["--ids", "ids.txt", "--output", "none/split.json"], "none/split.json"),
}


@pytest.mark.parametrize(("words", "expected"), BAD_WORDS.values(), ids=BAD_WORDS)
def test_bad_input_is_one_line_and_writes_nothing(make, listed, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    (tmp_path / "few.txt").write_text("a\nb\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    status, _, err = make("--output", "split.json", *words)
    (line,) = err.splitlines()
    assert (status, expected in line) == (2, True), line
    assert not (tmp_path / "split.json").exists()


def test_an_id_in_two_folders_is_refused(make, boxes, tmp_path):
    shutil.copy(boxes / "imagesVal" / "box_8.nii.gz", boxes / "imagesTr" / "box_8.nii.gz")
    shutil.copy(boxes / "labelsVal" / "box_8.nii.gz", boxes / "labelsTr" / "box_8.nii.gz")
    status, _, err = make("--root", boxes, "--dataset", boxes / "boxes.json", "--output", tmp_path / "split.json")
    assert (status, "found box_8 twice" in err) == (2, True)

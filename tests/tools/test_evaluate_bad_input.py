"""Evaluation as a command: every bad input is a line, and cases that fail do not stop the others."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from conftest import flip_a_bit
from evaluation_folders import AFFINE, change, make_command, put, read_table, write_folders

from engine.evaluation import pairs
from tools import evaluate


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


@pytest.fixture
def score(folders, capsys):
    return make_command(folders, capsys)


BAD = {
    "another shape": (
        lambda at: change(at / "good/case_1_seg.nii.gz", lambda voxels: voxels[1:]),
        r"case_1_seg\.nii\.gz: found shape 23 x 20 x 8, expected 24 x 20 x 8 as in .*labels/case_1\.nii\.gz",
    ),
    "another affine": (
        lambda at: change(at / "good/case_1_seg.nii.gz", lambda voxels: voxels, np.eye(4)),
        r"case_1_seg\.nii\.gz: found an affine that puts corners .* mm away from those of .*labels/case_1\.nii\.gz, "
        r"expected the same affine; if the voxels match, use --fix_affine",
    ),
    "a value of no class": (
        lambda at: change(at / "good/case_1_seg.nii.gz", put(5)),
        r"case_1_seg\.nii\.gz: found label values 5 \(1 voxel\), expected whole numbers from 0 to 2",
    ),
    "a probability map": (
        lambda at: change(at / "good/case_1_seg.nii.gz", lambda voxels: voxels * np.float32(0.4)),
        r"case_1_seg\.nii\.gz: found label values 0\.4 \(\d+ voxels\), .*, expected whole numbers from 0 to 2",
    ),
    "a label with a value of no class": (
        lambda at: change(at / "labels/case_1.nii.gz", put(5)),
        r"labels/case_1\.nii\.gz: found label values 5 \(1 voxel\), expected whole numbers from 0 to 2",
    ),
    "a damaged file": (
        lambda at: flip_a_bit(at / "good/case_1_seg.nii.gz"),
        r"case_1_seg\.nii\.gz: cannot be read \(.*CRC.*\), expected a whole NIfTI file",
    ),
    "a file of another format": (
        lambda at: (at / "good/case_1_seg.nii.gz").write_text("text"),
        r"case_1_seg\.nii\.gz: cannot be read \(not a NIfTI file\), expected a whole NIfTI file",
    ),
    "a prediction that is missing": (
        lambda at: (at / "good/case_1_seg.nii.gz").unlink(),
        r"good: found 1 of 3 labels in .*labels without a prediction \(case_1\), expected one prediction per label, "
        r"--split, or --allow_missing",
    ),
    "no folder of predictions": (
        lambda at: (at / "good").rename(at / "Good"),
        r"good: not found, expected a folder of \.nii\.gz or \.nii files \(beside it is Good\)",
    ),
    "an empty folder of predictions": (
        lambda at: (shutil.rmtree(at / "good"), (at / "good").mkdir()),
        r"good: found no volume, expected \.nii\.gz or \.nii files",
    ),
    "no folder of labels": (
        lambda at: shutil.rmtree(at / "labels"),
        r"labels: not found, expected a folder of \.nii\.gz or \.nii files",
    ),
    "a description that is no JSON": (
        lambda at: (at / "boxes.json").write_text("{"),
        r"--dataset: .*boxes\.json is not JSON \(.*\), expected a dataset description",
    ),
}


@pytest.mark.parametrize(("damage", "expected"), BAD.values(), ids=BAD)
def test_bad_input_is_a_line_and_nothing_is_written(folders, score, damage, expected):
    damage(folders)
    status, out, errors = score("--output", folders / "out")
    assert status == 2
    assert len(errors) == 1
    assert re.search(rf"{expected}$", errors[0]), errors[0]
    assert "Dice" not in out
    assert not (folders / "out").exists()


def test_all_problems_are_reported_together(folders, score):
    change(folders / "good" / "case_0_seg.nii.gz", put(5))
    change(folders / "bad" / "case_2.nii.gz", lambda voxels: voxels[:, 1:])
    status, _, errors = score(predictions=("good", "bad"), num_workers=2)
    assert status == 2
    assert [re.search(r"case_\d", line)[0] for line in errors] == ["case_0", "case_2"]


def test_predictions_without_a_valid_affine(folders, score):
    """--fix_affine takes the label's affine, also for the distances."""
    assert score("--output", folders / "out")[0] == 0
    for path in (folders / "good").iterdir():
        change(path, lambda voxels: voxels, np.eye(4))
    status, out, errors = score("--fix_affine", "--output", folders / "fixed")
    assert (status, errors) == (0, [])
    assert "warning: " in out
    assert ", whose affine is used (and 2 more of this kind)" in out
    assert read_table(folders / "out" / "scores.csv") == read_table(folders / "fixed" / "scores.csv")


def test_axes_that_are_not_perpendicular_are_warned_of(folders, score):
    assert "right angles" not in score()[1]
    skewed = AFFINE.copy()
    skewed[0, 2] = 1.0  # of a gantry tilted by 18 degrees
    for folder in ("labels", "good"):
        change(next((folders / folder).glob("case_1*")), lambda voxels: voxels, skewed)
    status, out, errors = score()
    assert (status, errors) == (0, [])
    assert "labels/case_1.nii.gz: found axes at an angle of 72 degrees, expected right angles: HD95 and NSD" in out


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_case_that_fails_does_not_stop_the_others(folders, score, monkeypatch, num_workers):
    real = pairs.score_structures

    def fail(prediction, label, *rest):
        if not (label == 2).any():
            raise MemoryError
        return real(prediction, label, *rest)

    monkeypatch.setattr(pairs, "score_structures", fail)
    status, out, errors = score("--output", folders / "out", num_workers=num_workers)
    assert status == 1
    assert errors == ["case_2: out of memory (MemoryError), expected lower --num_workers"]
    assert "good: 2 cases of" in out
    assert {row["case"] for row in read_table(folders / "out" / "scores.csv")} == {"case_0", "case_1"}
    assert json.loads((folders / "out" / "scores.json").read_text())["failures"] == errors


def test_all_cases_fail(folders, score, monkeypatch):
    monkeypatch.setattr(pairs, "score_structures", lambda *_: math.sqrt(-1))
    status, out, errors = score("--output", folders / "out")
    assert status == 1
    assert errors == [f"case_{number}: ValueError: math domain error" for number in range(3)]
    assert list((folders / "out").iterdir()) == []
    assert out == ""


def test_a_file_that_changes_after_the_check_fails(folders, score, monkeypatch):
    real = evaluate.check_pairs

    def check_and_damage(*args):
        warnings = real(*args)
        change(folders / "good" / "case_1_seg.nii.gz", put(5))
        return warnings

    monkeypatch.setattr(evaluate, "check_pairs", check_and_damage)
    status, _, (line,) = score()
    assert status == 1
    assert "case_1_seg.nii.gz: found label values 5" in line


def test_an_output_that_is_a_file(folders, score):
    (folders / "out").write_text("")
    status, _, (line,) = score("--output", folders / "out")
    assert status == 2
    assert line.startswith(f"--output: {folders / 'out'} cannot be written to")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--reference", "ugly"], "--reference: found ugly, expected one of --predictions (.*good)"),
        (["--tolerance", "0"], "argument --tolerance: found '0', expected a number above 0"),
        (["--dataset", "amoz"], "--dataset: found 'amoz', expected amos, "),
    ],
)
def test_wrong_flags(score, capsys, words, expected):
    try:
        status, _, (line,) = score(*words)
    except SystemExit as stop:
        status, line = stop.code, capsys.readouterr().err
    assert status == 2
    assert re.search(expected, line)


def test_one_folder_given_twice(score):
    status, _, (line,) = score(predictions=("good", "good"))
    assert status == 2
    assert line.endswith("good twice, expected different folders")

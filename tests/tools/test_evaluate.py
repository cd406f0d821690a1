"""Evaluation of folders of predictions as a command: scores, files, comparison."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
from conftest import DESCRIPTION
from evaluation_folders import REGIONS, change, make_command, put, read_table, write_folders

from engine.evaluation.metrics import DiceTable, dice_by_structure
from engine.evaluation.score_report import CSV_HEADER


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path)


@pytest.fixture
def score(folders, capsys):
    return make_command(folders, capsys)


def test_the_table_is_printed_and_nothing_is_written(folders, score):
    before = sorted(folders.rglob("*"))
    status, out, errors = score()
    assert (status, errors) == (0, [])
    assert sorted(folders.rglob("*")) == before
    assert f"good: 3 cases of {folders / 'good'}" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["left"][:5] == ["left", "3", "0.875", "±", "0.000"]
    assert rows["right"][1] == "2"
    assert [rows[name][-1] for name in ("left", "right", "both")] == ["1", "2", "3.5"]
    assert "Absent classes: 1 from both (no score), 0 from the prediction only, 0 from the label only (Dice 0" in out


def test_files_have_a_row_per_case_and_structure(folders, score):
    assert score("--output", folders / "out")[0] == 0
    rows = read_table(folders / "out" / "scores.csv")
    assert tuple(rows[0]) == CSV_HEADER
    assert [(row["case"], row["class"]) for row in rows[:4]] == [
        ("case_0", "left"), ("case_0", "right"), ("case_0", "both"), ("case_1", "left"),
    ]  # fmt: skip
    assert len(rows) == 9
    left, absent = rows[0], rows[7]
    assert (float(left["dice"]), float(left["iou"]), left["absent_from"], left["method"]) == (
        0.875,
        0.777778,
        "",
        "good",
    )
    assert float(left["hd95_mm"]) == pytest.approx(0.8)
    assert float(left["label_volume_ml"]) == pytest.approx(6 * 8 * 4 * 0.8 * 0.8 * 3 / 1000, abs=1e-6)
    assert (absent["class"], absent["dice"], absent["volume_ml"], absent["absent_from"]) == ("right", "", "", "both")
    assert {row["class"]: row["tolerance_mm"] for row in rows} == {"left": "1.0", "right": "2.0", "both": "3.5"}
    found = json.loads((folders / "out" / "scores.json").read_text())
    assert found["tolerance_mm"] == {"left": 1.0, "right": 2.0, "both": 3.5}
    assert found["means"]["good"]["left"]["dice"] == {"mean": 0.875, "sd": 0.0, "n": 3}
    assert found["cases"] == {"good": 3}
    assert found["comparisons"] == []
    assert {"python", "monai"} <= found["versions"].keys()
    assert set(found["definitions"]) == set(CSV_HEADER[2:-3])
    assert not (folders / "out" / "comparison.png").exists()


def test_spacing_and_intensity_may_be_missing_and_are_not_among_the_scores(folders, score):
    """The dataset.json that tools.prepare_dataset writes for datasets outside the paper has neither."""
    assert score("--output", folders / "full")[0] == 0
    labels_only = {name: value for name, value in DESCRIPTION.items() if name not in ("spacing", "intensity")}
    (folders / "boxes.json").write_text(json.dumps(labels_only | REGIONS))
    assert score("--output", folders / "out")[0] == 0
    full, found = ((folders / name / "scores.json").read_text() for name in ("full", "out"))
    assert found == full
    assert json.loads(found)["dataset"].keys() == {
        "name",
        "modality",
        "labels",
        "regions",
        "surface_tolerance",
        "channels",
    }
    assert (folders / "out" / "scores.csv").read_text() == (folders / "full" / "scores.csv").read_text()


def test_labels_are_not_scored_against_themselves(folders, score):
    """Their Dice of 1 would look like a result; neither the labels nor links to them are accepted."""
    for case in range(3):
        (folders / "good" / f"case_{case}_seg.nii.gz").unlink()
        (folders / "good" / f"case_{case}.nii.gz").symlink_to(folders / "labels" / f"case_{case}.nii.gz")
    for name in ("labels", "good"):
        status, _, lines = score("--output", folders / "out", predictions=[name])
        expected = "found the labels themselves (case_0, case_1, case_2), expected predictions"
        assert (status, lines) == (2, [f"{folders / name}: {expected}"])
    assert not (folders / "out").exists()


def test_the_dice_is_that_of_test_seg(folders, score):
    table = DiceTable(["left", "right"], ["both"])
    for number in range(3):
        volumes = (
            np.asarray(nib.load(folders / name / f"case_{number}.nii.gz").dataobj).astype(np.uint8)
            for name in ("bad", "labels")
        )
        table.add(f"case_{number}", dice_by_structure(*volumes, [(1,), (2,), (1, 2)]))
    table.write(folders)
    assert score("--output", folders / "out", predictions=["bad"])[0] == 0
    expected = {row["case"]: row for row in read_table(folders / "dice.csv")}
    for row in read_table(folders / "out" / "scores.csv"):
        assert row["dice"] == expected[row["case"]][row["class"]]
    means = json.loads((folders / "out" / "scores.json").read_text())["means"]["bad"]
    assert means["mean"]["dice"]["mean"] == json.loads((folders / "dice.json").read_text())["mean"]["mean"]


def test_the_tolerance_of_the_command_line_is_that_of_all_structures(folders, score):
    status, _, _ = score("--tolerance", 0.5, "--output", folders / "out")
    assert status == 0
    found = json.loads((folders / "out" / "scores.json").read_text())
    assert found["tolerance_mm"] == dict.fromkeys(("left", "right", "both"), 0.5)
    assert found["means"]["good"]["left"]["nsd"]["mean"] < 1
    score("--tolerance", 0.8, "--output", folders / "out")
    found = json.loads((folders / "out" / "scores.json").read_text())
    assert found["means"]["good"]["left"]["nsd"]["mean"] == 1  # shifted by a voxel of 0.8 mm


def test_processes_change_nothing(folders, score):
    for workers in (0, 2):
        output = folders / f"out_{workers}"
        assert score("--output", output, predictions=("good", "bad"), num_workers=workers)[0] == 0
    assert (folders / "out_0" / "scores.csv").read_text() == (folders / "out_2" / "scores.csv").read_text()
    first, second = (json.loads((folders / f"out_{workers}" / "scores.json").read_text()) for workers in (0, 2))
    assert first["means"] == second["means"]


def test_two_folders_are_compared(folders, score):
    status, out, _ = score("--output", folders / "out", predictions=("good", "bad"))
    assert status == 0
    assert "Differences from good over 3 cases that all folders have" in out
    found = json.loads((folders / "out" / "scores.json").read_text())
    assert found["reference"] == "good"
    assert [(row["method"], row["metric"]) for row in found["comparisons"]] == [
        ("bad", "dice"), ("bad", "iou"), ("bad", "hd95_mm"), ("bad", "nsd"),
    ]  # fmt: skip
    dice = found["comparisons"][0]
    assert dice["difference"] < 0
    assert (dice["cases"], dice["rank_biserial"]) == (3, -1)
    assert dice["p"] == pytest.approx(min(1, 4 * 2 / 2**3))
    assert len(read_table(folders / "out" / "scores.csv")) == 18
    assert (folders / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("given", ["bad", "{folders}/bad/"])
def test_the_reference_may_be_another_than_the_first(folders, score, given):
    _, out, _ = score("--reference", given.format(folders=folders), predictions=("good", "bad"))
    assert "Differences from bad" in out
    assert re.search(r"^good +Dice +\+0\.", out, flags=re.MULTILINE)


def test_only_common_cases_are_compared(folders, score):
    (folders / "good" / "case_0_seg.nii.gz").unlink()
    status, out, _ = score("--allow_missing", "--output", folders / "out", predictions=("good", "bad"))
    assert status == 0
    assert "good: 2 cases of" in out
    assert "bad: 3 cases of" in out
    assert "Differences from good over 2 cases" in out
    assert "without a prediction (case_0), which are left out" in out
    found = json.loads((folders / "out" / "scores.json").read_text())
    assert found["missing"] == {"good": ["case_0"], "bad": []}
    assert found["comparisons"][0]["cases"] == 2


def test_no_common_case_is_no_comparison(folders, score):
    for number in range(3):
        name = f"good/case_{number}_seg.nii.gz" if number else f"bad/case_{number}.nii.gz"
        (folders / name).unlink()
    status, out, _ = score("--allow_missing", "--output", folders / "out", predictions=("good", "bad"))
    assert status == 0
    assert "No comparison: no case has a prediction in all folders." in out
    assert not (folders / "out" / "comparison.png").exists()


def test_labels_with_merged_values_and_ignored_voxels(folders, score):
    """Values as in the files; an ignored voxel of the label may be anything in the prediction, but no ignored voxel."""
    labels = {"background": 0, "left": [1, 7], "right": 2, "ignore": 9}
    (folders / "boxes.json").write_text(json.dumps(DESCRIPTION | {"labels": labels}))
    change(folders / "labels" / "case_0.nii.gz", put(9))
    change(folders / "good" / "case_0_seg.nii.gz", lambda voxels: put(2)(np.where(voxels == 1, 7, voxels)))
    assert score("--output", folders / "out")[0] == 0
    left, right, *_ = read_table(folders / "out" / "scores.csv")
    assert (float(left["dice"]), float(right["dice"])) == (0.875, 0.875)
    change(folders / "good" / "case_1_seg.nii.gz", put(9))
    status, _, (line,) = score()
    assert status == 2
    assert line.endswith("case_1_seg.nii.gz: found label values 9 (1 voxel), expected 0, 1, 2, 7")


def test_volumes_turned_in_the_file_have_the_same_scores(folders, score):
    """Axes in another order and direction, in predictions and labels alike."""
    score("--output", folders / "out")
    for path in [*(folders / "labels").iterdir(), *(folders / "good").iterdir()]:
        image = nib.load(path)
        nib.save(image.as_reoriented([[2, 1], [0, -1], [1, 1]]), path)
    score("--output", folders / "turned")
    pair = (read_table(folders / name / "scores.csv") for name in ("out", "turned"))
    for before, after in zip(*pair, strict=True):
        for name in CSV_HEADER[2:-2]:
            assert float(after[name] or "nan") == pytest.approx(float(before[name] or "nan"), rel=1e-4, nan_ok=True)


def test_the_same_command_again_replaces_its_files(folders, score):
    assert score("--output", folders / "out", predictions=("good", "bad"))[0] == 0
    assert score("--output", folders / "out")[0] == 0
    assert {row["method"] for row in read_table(folders / "out" / "scores.csv")} == {"good"}
    assert not (folders / "out" / "comparison.png").exists()


@pytest.mark.parametrize("name", ["scores.csv", "scores.json", "comparison.png"])
@pytest.mark.parametrize("after", [False, True])
def test_files_of_others_are_kept(folders, score, name, after):
    (folders / "out").mkdir()
    if after:
        assert score("--output", folders / "out")[0] == 0
    (folders / "out" / name).write_text("mine")
    status, out, errors = score("--output", folders / "out", predictions=("good", "bad"))
    assert status == 2
    assert f"--output: {folders / 'out' / name} is no file of this program, expected another folder" in errors
    assert (folders / "out" / name).read_text() == "mine"
    assert out == ""


@pytest.mark.parametrize("edit", [lambda values: values["means"].clear(), lambda values: values.pop("files")])
def test_a_summary_that_somebody_has_changed_is_kept(folders, score, edit):
    assert score("--output", folders / "out")[0] == 0
    path = folders / "out" / "scores.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    status, _, errors = score("--output", folders / "out")
    assert status == 2
    assert f"--output: {path} is no file of this program, expected another folder" in errors
    assert json.loads(path.read_text()) == values


@pytest.mark.parametrize("written", range(3))
def test_a_run_that_was_killed_while_writing_can_be_repeated(folders, score, monkeypatch, written):
    """Whichever of the three files was the last."""
    score("--output", folders / "out", predictions=("good", "bad"))
    files = {"scores.json": "write_text", "scores.csv": "write_whole", "comparison.png": "write_whole"}
    done = list(files)[:written]

    def stop_at(real):
        def write(path, *args):
            if path.name not in done:
                raise KeyboardInterrupt
            real(path, *args)

        return write

    with monkeypatch.context() as patched:
        from engine.evaluation import score_files

        for function in set(files.values()):
            patched.setattr(score_files, function, stop_at(getattr(score_files, function)))
        assert score("--output", folders / "out", predictions=("good", "bad"))[0] == 130
    assert score("--output", folders / "out", predictions=("good", "bad"))[0] == 0
    assert sorted(path.name for path in (folders / "out").iterdir()) == sorted(files)


def test_a_split_says_which_cases_are_scored(folders, score):
    split = {"folds": [{"training": ["case_0"], "validation": ["case_1"]}], "test": ["case_2"]}
    (folders / "split.json").write_text(json.dumps(split))
    for flags, case in (([], "case_2"), (["--part", "validation"], "case_1")):
        status, _, errors = score("--split", folders / "split.json", *flags, "--output", folders / f"of_{case}")
        assert (status, errors) == (0, [])
        assert {row["case"] for row in read_table(folders / f"of_{case}" / "scores.csv")} == {case}
    (folders / "good" / "case_0_seg.nii.gz").unlink()  # not needed for the test part
    assert score("--split", folders / "split.json")[0] == 0
    (folders / "labels" / "case_2.nii.gz").unlink()
    status, _, (line,) = score("--split", folders / "split.json")
    assert status == 2
    assert line == f"{folders / 'labels'}: found no label of case_2, expected the labels of 1 case of --split"
    status, _, (line,) = score("--part", "test")
    assert status == 2
    assert line.startswith("--part: found test without --split")

"""Predictions of any software are paired with labels by id; names of folders."""

from pathlib import Path

import pytest

from engine.evaluation.pairs import find_pairs, name_folders
from engine.runtime.errors import InputError


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def ids(pairs):
    return {pair.case: {name: Path(path).name for name, path in pair.predictions.items()} for pair in pairs}


def test_both_forms_of_names_are_paired(tmp_path):
    labels = fill(tmp_path / "labels", "a.nii.gz", "b.nii.gz", "c_seg.nii.gz")
    ours = fill(tmp_path / "ours", "a_seg.nii.gz", "b_seg.nii.gz", "c_seg_seg.nii.gz", "settings.json", "a.png")
    theirs = fill(tmp_path / "theirs", "a.nii.gz", "b.nii", "c_seg.nii.gz", "plans.json")
    pairs, missing, warnings = find_pairs(labels, {"ours": ours, "theirs": theirs}, allow_missing=False)
    assert ids(pairs) == {
        "a": {"ours": "a_seg.nii.gz", "theirs": "a.nii.gz"},
        "b": {"ours": "b_seg.nii.gz", "theirs": "b.nii"},
        "c_seg": {"ours": "c_seg_seg.nii.gz", "theirs": "c_seg.nii.gz"},
    }
    assert missing == {"ours": [], "theirs": []}
    assert warnings == {}


def test_two_predictions_of_one_label_are_refused(tmp_path):
    labels = fill(tmp_path / "labels", "a.nii.gz")
    folder = fill(tmp_path / "both", "a.nii.gz", "a_seg.nii.gz")
    with pytest.raises(InputError, match=r"both: found a.nii.gz and a_seg.nii.gz for a, expected one prediction per"):
        find_pairs(labels, {"both": folder}, allow_missing=True)


def test_labels_without_a_prediction(tmp_path):
    labels = fill(tmp_path / "labels", *(f"{name}.nii.gz" for name in "abcd"))
    folders = {"x": fill(tmp_path / "x", "a.nii.gz", "b.nii.gz"), "y": fill(tmp_path / "y", "b.nii.gz", "c.nii.gz")}
    with pytest.raises(InputError) as caught:
        find_pairs(labels, folders, allow_missing=False)
    first, second = str(caught.value).splitlines()
    assert first.endswith("without a prediction (c, d), expected one prediction per label, --split, or --allow_missing")
    assert second.startswith(f"{folders['y']}: found 2 of 4 labels in {labels} without a prediction (a, d)")
    pairs, missing, warnings = find_pairs(labels, folders, allow_missing=True)
    assert {case: sorted(found) for case, found in ids(pairs).items()} == {"a": ["x"], "b": ["x", "y"], "c": ["y"]}
    assert missing == {"x": ["c", "d"], "y": ["a", "d"]}
    assert [line for lines in warnings.values() for line in lines] == [
        f"{folders['x']}: found 2 of 4 labels in {labels} without a prediction (c, d), which are left out",
        f"{folders['y']}: found 2 of 4 labels in {labels} without a prediction (a, d), which are left out",
    ]


def test_predictions_of_other_cases_alone_are_refused(tmp_path):
    labels, folder = fill(tmp_path / "labels", "a.nii.gz"), fill(tmp_path / "x", "b.nii.gz")
    with pytest.raises(InputError, match=r"1 of 1 labels in .* without a prediction \(a\), expected one .* label$"):
        find_pairs(labels, {"x": folder}, allow_missing=True)


def test_predictions_without_a_label_are_left_out(tmp_path):
    labels, folder = fill(tmp_path / "labels", "a.nii.gz"), fill(tmp_path / "x", "a.nii.gz", "b_seg.nii.gz")
    pairs, _, warnings = find_pairs(labels, {"x": folder}, allow_missing=False)
    assert list(ids(pairs)) == ["a"]
    (lines,) = warnings.values()
    assert lines == [f"{folder}: left out b_seg.nii.gz, which belong to no label to score in {labels}"]


def test_folders_are_named_by_what_distinguishes_them():
    def names(*folders):
        return list(name_folders([Path(folder) for folder in folders]))

    assert names("runs/rep3d/") == ["rep3d"]
    assert names("runs/rep3d", "runs/unet") == ["rep3d", "unet"]
    assert names("a/predictions", "b/predictions") == ["a/predictions", "b/predictions"]
    assert names("/a/x/out", "/b/x/out", "/c/y/out") == ["a/x/out", "b/x/out", "c/y/out"]
    assert names("/x/out", "/x/out/out") == ["x/out", "out/out"]
    assert names("/out", "/x/out") == ["/out", "x/out"]
    assert names(".") == [Path.cwd().name]
    assert names("x\udcff", "a\nb", "ü") == ["x\\udcff", "a\\nb", "ü"]


def test_a_folder_given_twice_is_refused():
    with pytest.raises(InputError, match=r"--predictions: found a/\.\./b twice, expected different folders"):
        name_folders([Path("b"), Path("a/../b")])

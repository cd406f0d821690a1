"""Finding cases and pairing images with labels by id; one line for everything that has no partner."""

import pytest

from engine.data.cases import find_cases, find_splits, find_test_cases, find_training_cases, pair_cases
from engine.data.datasets import DATASETS, find_description
from engine.runtime.errors import InputError
from load_datasets_transforms import test_pipeline as prediction_pipeline


def touch(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_cases_are_paired_by_id_not_by_order(tmp_path):
    images = touch(tmp_path / "images", "b.nii.gz", "a.nii", "._a.nii", "notes.txt")
    labels = touch(tmp_path / "labels", "a.nii.gz", "b.nii")
    cases = [(case["id"], case["image"], case["label"]) for case in pair_cases(images, labels)]
    assert cases == [
        ("a", str(images / "a.nii"), str(labels / "a.nii.gz")),
        ("b", str(images / "b.nii.gz"), str(labels / "b.nii")),
    ]


def ids(cases):
    return [case["id"] for case in cases]


def test_labels_decide_whether_numbers_are_channels_or_ids(tmp_path):
    amos = touch(tmp_path / "amos", "amos_0000.nii.gz", "amos_0001.nii.gz")
    assert ids(pair_cases(amos, amos)) == ids(pair_cases(amos, None)) == ["amos_0000", "amos_0001"]
    lone = touch(tmp_path / "lone", "amos_0000.nii.gz")
    assert ids(pair_cases(lone, lone)) == ids(pair_cases(lone, None)) == ["amos_0000"]
    assert ids(pair_cases(amos / "amos_0000.nii.gz", amos)) == ["amos_0000"]
    nnunet = touch(tmp_path / "nnunet", "a_0000.nii.gz", "b_0000.nii.gz")
    labels = touch(tmp_path / "labels", "a.nii.gz", "b.nii.gz")
    assert ids(pair_cases(nnunet, labels)) == ["a", "b"]
    assert pair_cases(nnunet, labels)[0]["image"] == str(nnunet / "a_0000.nii.gz")


def test_several_channels_are_files_of_their_own_or_one_4d_file(tmp_path):
    separate = touch(tmp_path / "separate", *(f"{case}_000{channel}.nii" for case in "ab" for channel in (0, 1)))
    cases = pair_cases(separate, None, channels=2)
    assert ids(cases) == ["a", "b"]
    assert cases[1]["image"] == [str(separate / "b_0000.nii"), str(separate / "b_0001.nii")]
    whole = touch(tmp_path / "whole", "a_0000.nii.gz", "a_0001.nii.gz")
    assert ids(pair_cases(whole, whole, channels=2)) == ["a_0000", "a_0001"]
    assert ids(pair_cases(touch(tmp_path / "plain", "a.nii", "b.nii"), None, channels=2)) == ["a", "b"]


def test_missing_channel_is_named(tmp_path):
    images = touch(tmp_path / "images", "a_0000.nii", "a_0001.nii", "b_0001.nii")
    expected = r"found 1 file of b \(b_0001.nii\), expected 2 channels as in the description \(b_0000, b_0001\)"
    with pytest.raises(InputError, match=expected):
        pair_cases(images, None, channels=2)


def test_unpaired_ids_are_named(tmp_path):
    images = touch(tmp_path / "images", *(f"{number}.nii" for number in range(9)))
    labels = touch(tmp_path / "labels", "8.nii")
    with pytest.raises(InputError, match="found 0, 1, 2, 3, 4, 5, 6, 7 without a label"):
        pair_cases(images, labels)


def test_everything_unpaired_is_reported_and_the_rest_is_paired(tmp_path):
    images = touch(tmp_path / "images", "a.nii", "b.nii", "c.nii", "c.nii.gz", "d.nii")
    labels = touch(tmp_path / "labels", "c.nii", "d.nii", "e.nii", "e.nii.gz", "f.nii")
    cases, problems, _ = find_cases(images, labels)
    assert ids(cases) == ["c", "d"]
    assert [problem.partition(", expected")[0] for problem in problems] == [
        f"{images}/c.nii.gz: found c twice",
        f"{labels}/e.nii.gz: found e twice",
        f"{images}: found a, b without a label in {labels}",
        f"{labels}: found e, f without an image in {images}",
    ]


def test_incomplete_channels_are_reported_once_without_their_labels(tmp_path):
    names = ("a_0000", "a_0001", "b_0000", "c_0001", "c_0002", "d_0000", "d_0001")
    images = touch(tmp_path / "images", *(f"{name}.nii" for name in names))
    labels = touch(tmp_path / "labels", *(f"{name}.nii" for name in "abc"))
    cases, problems, _ = find_cases(images, labels, channels=2)
    assert ids(cases) == ["a"]
    assert sorted(problem.partition(",")[0] for problem in problems) == [
        f"{images}: found 1 file of b (b_0000.nii)",
        f"{images}: found 2 files of c (c_0001.nii",
        f"{images}: found d without a label in {labels}",
    ]


def test_without_a_label_folder_every_image_is_a_case(tmp_path):
    images = touch(tmp_path / "images", "a.nii")
    cases, problems, _ = find_cases(images, tmp_path / "labels")
    assert ids(cases) == ["a"]
    assert problems == [f"{tmp_path}/labels: not found, expected a folder of .nii.gz or .nii files"]
    assert find_cases(tmp_path / "none", images).cases == []


def test_problems_of_both_splits_are_reported_together(boxes):
    for name in ("imagesTr/box_0", "labelsVal/box_9"):
        (boxes / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError) as caught:
        find_training_cases(boxes, DATASETS["amos"])
    assert ["box_0" in line or "box_9" in line for line in str(caught.value).splitlines()] == [True, True]


def test_test_cases_are_found_if_there_are_any(boxes):
    amos = find_description("amos")
    assert list(find_splits(boxes, amos, test=True)) == ["training", "validation"]
    (boxes / "imagesVal").rename(boxes / "imagesTs")
    splits = find_splits(boxes, amos, test=True)
    assert [ids(found.cases) for found in splits.values()] == [["box_0", "box_1", "box_2"], [], ["box_8", "box_9"]]
    assert "label" not in splits["test"].cases[0]
    assert [len(found.problems) for found in splits.values()] == [0, 1, 0]
    (boxes / "labelsVal").rename(boxes / "labelsTs")
    assert "label" in find_splits(boxes, amos, test=True)["test"].cases[0]


def test_transformed_cases_keep_the_paths_of_their_files(boxes):
    description = find_description(str(boxes / "boxes.json"))
    for case in find_test_cases(str(boxes), None, None, description):
        sample = prediction_pipeline(description)(case)
        assert sample["source"] == case["image"] == str(boxes / "imagesVal" / f"{case['id']}.nii.gz")
        assert sample["label"] == case["label"] == str(boxes / "labelsVal" / f"{case['id']}.nii.gz")

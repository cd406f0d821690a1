"""Finding cases and pairing images with labels by id; one line for everything that has no partner."""

import shutil

import pytest

from engine.data.cases import find_cases, find_splits, find_test_cases, find_training_cases, pair_cases
from engine.data.datasets import DATASETS, find_description
from engine.data.splits import Split
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


AMOS = DATASETS["amos"]


def make_split(training, validation, test=None):
    parts = {"training": tuple(training), "validation": tuple(validation), **({"test": tuple(test)} if test else {})}
    return Split("mine", "0" * 64, 1, 0, parts)


@pytest.fixture
def root(tmp_path):
    """Dataset folder with labelled cases a to d in three folders, and e without a label."""
    for part, names in {"Tr": "ab", "Va": "c", "Ts": "de"}.items():
        touch(tmp_path / f"images{part}", *(f"{name}.nii" for name in names))
        touch(tmp_path / f"labels{part}", *(f"{name}.nii" for name in names if name != "e"))
    return tmp_path


def test_cases_of_a_split_are_found_in_all_folders(root, capsys):
    training, validation = find_training_cases(root, AMOS, make_split("ad", "c", "b"))
    assert (ids(training), ids(validation)) == (["a", "d"], ["c"])
    assert training[1]["label"] == str(root / "labelsTs" / "d.nii")
    assert capsys.readouterr().out == f"warning: {root}: found 1 case in no part of the split 'mine' (e)\n"


def test_folders_that_do_not_exist_are_not_needed(root):
    for folder in ("imagesVa", "labelsVa", "imagesTs", "labelsTs"):
        shutil.rmtree(root / folder)
    assert [ids(cases) for cases in find_training_cases(root, AMOS, make_split("a", "b"))] == [["a"], ["b"]]


def test_a_part_of_a_split_is_predicted(root):
    split = make_split("ab", "c", "de")

    def predicted(*more):
        return ids(find_test_cases(str(root), None, None, AMOS, *more))

    assert predicted(split) == predicted(split, "test") == ["d", "e"]
    assert predicted(split, "training") == ["a", "b"]
    assert predicted(make_split("ab", "c")) == predicted(split, "validation") == ["c"]


WRONG = {
    "no image": (("ax", "cy"), ["no image of x, expected the 2 training", "no image of y, expected the 2 validation"]),
    "no label": (("a", "e"), ["no label of e, expected the 1 validation case of the split 'mine'"]),
}


@pytest.mark.parametrize(("parts", "expected"), WRONG.values(), ids=WRONG)
def test_cases_that_are_not_there_are_named_once_per_part(root, parts, expected):
    with pytest.raises(InputError) as found:
        find_training_cases(root, AMOS, make_split(*parts))
    lines = str(found.value).splitlines()
    assert all(f"--root: {root}: found {line}" in text for line, text in zip(expected, lines, strict=True))


def test_an_id_in_two_folders_is_refused_if_the_split_has_it(root):
    (root / "imagesVa" / "a.nii").touch()
    (root / "labelsVa" / "a.nii").touch()
    with pytest.raises(InputError, match="found two images of a, expected the 1 training case of the split 'mine'"):
        find_training_cases(root, AMOS, make_split("a", "c"))
    assert ids(find_training_cases(root, AMOS, make_split("b", "c"))[0]) == ["b"]


def test_a_root_that_does_not_exist_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"--root: .*none not found, expected a dataset folder"):
        find_training_cases(tmp_path / "none", AMOS, make_split("a", "b"))


@pytest.mark.parametrize("words", [(None, None, None), ("root", "images", None), ("root", None, "labels")])
def test_a_split_goes_with_the_root_alone(words):
    with pytest.raises(InputError, match="--split: found it without --root, or with --images or --labels"):
        find_test_cases(*words, AMOS, make_split("a", "b"))


def test_a_part_needs_a_split():
    with pytest.raises(InputError, match="--part: found test without --split"):
        find_test_cases("root", None, None, AMOS, None, "test")


def test_a_missing_validation_folder_names_the_other_way(boxes):
    shutil.rmtree(boxes / "imagesVal")
    shutil.rmtree(boxes / "labelsVal")
    with pytest.raises(InputError) as found:
        find_training_cases(boxes, AMOS)
    assert "imagesVal: not found" in str(found.value).splitlines()[0]
    assert "or --split with a file" in str(found.value).splitlines()[0]

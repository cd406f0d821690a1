"""Files of a folder: what is a volume, what is left out and said, and which files are channels of one image."""

import pytest

from engine.data.cases import find_cases
from engine.data.folders import group_channels, list_volumes


def touch(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_endings_may_be_in_capitals(tmp_path):
    volumes = list_volumes(touch(tmp_path / "images", "a.NII.GZ", "B.Nii", "c.nii.gz", "d.NII"))
    assert sorted(volumes.paths) == ["B", "a", "c", "d"]
    assert (volumes.problems, volumes.warnings) == ([], {})


def test_one_id_with_two_endings_is_a_problem(tmp_path):
    volumes = list_volumes(touch(tmp_path / "images", "a.NII.GZ", "a.nii.gz"))
    assert volumes.problems == [f"{tmp_path}/images/a.nii.gz: found a twice, expected either .nii or .nii.gz"]


def test_files_of_other_formats_are_named(tmp_path):
    others = ["a.nrrd", "b.mha", "c.mgz", "d.img", "e.dcm", "f.nii.bz2"]
    images = touch(tmp_path / "images", "x.nii.gz", "notes.txt", ".DS_Store", "Thumbs.db", "dataset.json", *others)
    assert list_volumes(images).warnings == {
        "formats": f"{images}: left out a.nrrd, b.mha, c.mgz, d.img, e.dcm and 1 more, expected .nii.gz or .nii files"
    }


def test_predictions_are_left_out_of_the_images_of_their_folder(tmp_path):
    folder = touch(tmp_path / "scans", "a.nii.gz", "a_seg.nii.gz", "b.nii.gz")
    assert sorted(list_volumes(folder, skip_predictions=True).paths) == ["a", "a_seg", "b"]
    (folder / "settings.json").write_text('{"sources": {}}')
    volumes = list_volumes(folder, skip_predictions=True)
    assert sorted(volumes.paths) == ["a", "b"]
    assert volumes.warnings == {"predictions": f"{folder}: left out a_seg.nii.gz, predictions of test_seg.py"}
    assert sorted(list_volumes(folder).paths) == ["a", "a_seg", "b"]  # as labels


def test_probabilities_beside_predictions_need_no_word(tmp_path):
    """A folder of predictions, as tools.evaluate reads it."""
    folder = touch(tmp_path / "predictions", "a_seg.nii.gz", "a_prob_native.npz", "a_prob_network.npz", "a.npz")
    assert list_volumes(folder).warnings == {
        "formats": f"{folder}: left out a.npz, expected .nii.gz or .nii files",
    }


def group(folder, *names, channels=1, endings=(), labels=()):
    paths = list_volumes(touch(folder, *(f"{name}.nii.gz" for name in names))).paths
    return group_channels(folder, paths, channels, endings, dict.fromkeys(labels, "label"))


def test_channels_are_recognised_by_their_endings(tmp_path):
    names = [f"{case}_{ending}" for case in ("p1", "p2") for ending in ("t1", "t1ce", "flair", "seg")]
    images = group(tmp_path / "images", *names, channels=2, endings=("_t1ce", "_t1"), labels=("p1", "p2"))
    assert list(images.complete) == ["p1", "p2"]
    assert images.complete["p1"] == [f"{tmp_path}/images/p1_{ending}.nii.gz" for ending in ("t1ce", "t1")]
    assert images.problems == []
    assert images.warnings == {
        "channels": f"{tmp_path}/images: left out p1_flair.nii.gz, p1_seg.nii.gz, p2_flair.nii.gz, p2_seg.nii.gz, "
        "expected names that end with _t1ce, _t1"
    }


def test_the_longest_ending_counts(tmp_path):
    images = group(tmp_path / "images", "a_t1", "a_ce_t1", channels=2, endings=("_t1", "_ce_t1"))
    assert images.complete == {"a": [f"{tmp_path}/images/a_t1.nii.gz", f"{tmp_path}/images/a_ce_t1.nii.gz"]}


def test_a_missing_ending_is_named(tmp_path):
    images = group(tmp_path / "images", "a_t1", "a_t2", "b_t1", "c_t1", channels=2, endings=("_t1", "_t2"))
    assert list(images.complete) == ["a"]
    assert images.incomplete == {"b", "c"}
    assert images.problems == [
        f"{tmp_path}/images: found 1 file of b (b_t1.nii.gz) and 1 more like it, expected 2 channels as in the "
        "description (b_t1, b_t2)"
    ]


def test_both_numbers_of_channels_are_named(tmp_path):
    names = [f"{case}_000{channel}" for case in "xy" for channel in (0, 1)]
    images = group(tmp_path / "images", *names, labels=("x", "y"))
    assert images.problems == [
        f"{tmp_path}/images: found 2 files of x (x_0000.nii.gz, x_0001.nii.gz) and 1 more like it, expected 1 channel "
        "as in the description (x_0000)"
    ]


def test_a_folder_with_a_similar_name_is_named(tmp_path):
    (tmp_path / "imagesval").mkdir()
    (tmp_path / "imagesTr").mkdir()
    assert list_volumes(tmp_path / "imagesVal").problems == [
        f"{tmp_path}/imagesVal: not found, expected a folder of .nii.gz or .nii files (beside it is imagesval)"
    ]
    assert list_volumes(tmp_path / "labelsVal").problems == [
        f"{tmp_path}/labelsVal: not found, expected a folder of .nii.gz or .nii files"
    ]


def test_files_that_look_like_channels_are_warned_of_without_labels(tmp_path):
    names = [f"{case}_000{channel}" for case in "xy" for channel in (0, 1)]
    images = group(tmp_path / "images", *names)
    assert sorted(images.complete) == sorted(names)
    assert images.warnings["channels"].startswith(f"{tmp_path}/images: found 2 files with _0000, _0001 of x, y,")
    assert group(tmp_path / "labelled", *names, labels=names).warnings == {}  # so each is a case
    assert "of x, but 1 channel in the" in group(tmp_path / "one", "x_0000", "x_0001").warnings["channels"]
    assert group(tmp_path / "amos", *(f"amos_000{case}" for case in range(5))).warnings == {}


@pytest.mark.parametrize("every_label", [True, False])
def test_images_without_a_label_are_predicted_and_not_trained_on(tmp_path, every_label):
    images = touch(tmp_path / "images", "a.nii", "b.nii")
    labels = touch(tmp_path / "labels", "b.nii")
    found = find_cases(images, labels, every_label=every_label)
    assert [case["id"] for case in found.cases] == ["b"] if every_label else ["a", "b"]
    assert bool(found.problems) == every_label
    if not every_label:
        assert found.warnings == {
            "no label": [
                f"{images}: found 1 of 2 images without a label in {labels} (a), which are predicted and not scored"
            ]
        }

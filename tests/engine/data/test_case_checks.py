"""Checks of the voxels of one case: problems, warnings and the numbers in its report."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from conftest import DESCRIPTION, make_box_case, write_nifti

from engine.data.case_checks import examine_case, read_checked_label
from engine.data.cases import make_case
from engine.data.datasets import DatasetDescription
from engine.runtime.errors import InputError
from load_datasets_transforms import test_pipeline as prediction_pipeline

ZSCORE = DatasetDescription.from_json(DESCRIPTION, "test")
WINDOW = DatasetDescription.from_json(DESCRIPTION | {"intensity": {"window": [0, 10]}}, "test")


def write_case(folder, image, label=None, affine=None):
    """Write a case with these voxels, and without a label file if ``label`` is None."""
    write_nifti(folder / "image.nii.gz", image, affine)
    if label is None:
        return make_case("case", str(folder / "image.nii.gz"))
    write_nifti(folder / "label.nii.gz", label, affine)
    return make_case("case", str(folder / "image.nii.gz"), str(folder / "label.nii.gz"))


def examine(case, description=ZSCORE, full=True):
    return examine_case(case, "training", description, full)


def noise(shape=(6, 5, 4), seed=0):
    return np.random.default_rng(seed).normal(5, 1, shape).astype(np.float32)


def test_every_problem_of_every_file_is_reported(tmp_path):
    image = noise()
    image[0, 0, :2] = np.nan, np.inf
    case = write_case(tmp_path, image, np.full((6, 5, 4), 9, np.uint8), np.diag([1, 1, 2, 1]))
    write_nifti(tmp_path / "label.nii.gz", np.full((6, 5, 4), 9, np.uint8))
    found = [line.partition(", expected")[0].partition(": ")[2] for line in sorted(examine(case).problems)]
    assert found == [
        "found 1 NaN voxel",
        "found 1 infinite voxel",
        f"found an affine that puts corners 3 mm away from those of {case['image']}",
        "found label values 9 (120 voxels)",
    ]
    assert len(examine(case, full=False).problems) == 1


def test_truncated_files_are_reported_with_everything_else_that_is_known(tmp_path):
    case = write_case(tmp_path, noise((20, 30, 40)), np.ones((20, 30, 40), np.uint8))
    content = (tmp_path / "image.nii.gz").read_bytes()
    (tmp_path / "image.nii.gz").write_bytes(content[: len(content) // 2])
    report = examine(case)
    assert [line.partition(" (")[0] for line in report.problems] == [f"{case['image']}: cannot be read"]
    assert (report.shape, report.resampled_shape) == ([20, 30, 40], [20, 30, 40])
    assert report.voxels_by_class == {"background": 0, "left": 24000, "right": 0}
    assert (report.cropped_shape, report.digest) == (None, None)


def test_axes_are_anatomical_and_shapes_match_the_pipeline(tmp_path):
    affine = np.zeros((4, 4))
    affine[[2, 0, 1, 3], range(4)] = (-2, 1.5, 0.7, 1)  # inferior, right, anterior
    report = examine(write_case(tmp_path, noise((9, 20, 30)), affine=affine))
    assert (report.shape, report.spacing) == ([20, 30, 9], pytest.approx([1.5, 0.7, 2]))
    transforms = prediction_pipeline(ZSCORE)
    assert tuple(report.resampled_shape) == transforms({"image": report.files[0]})["image"].shape[1:]


@pytest.mark.parametrize("description", [ZSCORE, WINDOW], ids=["zscore", "window"])
@pytest.mark.parametrize("spacing", [0.5, 1, 3])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flip", [1, -1])
def test_the_estimated_crop_is_right_within_a_voxel_at_each_end(tmp_path, description, spacing, axes, flip):
    image = np.zeros((40, 30, 20), np.float32)
    image[3:30, 8:30, 5:6] = noise((27, 22, 1))
    case = write_case(tmp_path, image, affine=np.diag([flip * spacing, spacing, 1, 1])[[*axes, 3]])
    report = examine(case, description)
    transforms = prediction_pipeline(description)
    cropped = transforms({"image": case["image"]})["image"].shape[1:]
    most = 0 if spacing == 1 else np.ceil([spacing, spacing, 1])[[*axes]]
    assert np.all(np.abs(np.subtract(cropped, report.cropped_shape)) <= most)


def test_saturation_is_measured_in_the_bounding_box_of_the_foreground(tmp_path):
    image = np.full((40, 10, 10), -100, np.int16)  # mostly air around the foreground
    image[10:20] = 5
    image[10:20, :3] = 10
    image[10:20, 3:5] = 0
    report = examine(write_case(tmp_path, image), WINDOW)
    assert (report.share_low, report.share_high) == (pytest.approx(0.2), pytest.approx(0.3))
    assert "saturated" not in report.warnings
    image[10:20, 3:8] = 0
    (warning,) = examine(write_case(tmp_path, image), WINDOW).warnings["saturated"]
    assert "training case case: found 50%" in warning
    assert "and 30% at or above it (0 to 10)" in warning
    assert examine(write_case(tmp_path, image)).share_low is None


def test_constant_images_and_empty_labels_cause_warnings(tmp_path):
    report = examine(write_case(tmp_path, np.full((4, 4, 4), 7.0), np.zeros((4, 4, 4), np.uint8)))
    assert report.problems == []
    assert report.cropped_shape == [4, 4, 4]
    assert list(report.warnings) == ["unlabelled", "constant"]
    assert "no labelled voxel" in report.warnings["unlabelled"][0]
    assert "found 7 in every voxel" in report.warnings["constant"][0]


def test_channels_are_measured_together(tmp_path):
    two = DatasetDescription.from_json(
        DESCRIPTION | {"channels": ["T1", "T2"], "intensity": {"window": [0, 10]}}, "test"
    )
    image = np.zeros((10, 4, 4, 2), np.float32)
    image[2:4, ..., 0] = image[5:8, ..., 1] = 5
    whole = examine(write_case(tmp_path, image), two)
    parts = [tmp_path / "image_0000.nii", tmp_path / "image_0001.nii"]
    for channel, path in enumerate(parts):
        write_nifti(path, image[..., channel])
    apart = examine(make_case("case", list(map(str, parts))), two)
    for report in (whole, apart):
        assert report.problems == []
        assert report.cropped_shape == [6, 4, 4]
        assert report.share_low == pytest.approx(1 - 5 / 12)


def test_channels_that_do_not_fit_are_not_measured_together(tmp_path):
    two = DatasetDescription.from_json(DESCRIPTION | {"channels": ["T1", "T2"]}, "test")
    paths = [str(tmp_path / "image_0000.nii"), str(tmp_path / "image_0001.nii")]
    for length, path in enumerate(paths, 4):
        write_nifti(tmp_path / path, noise((6, 5, length)))
    report = examine(make_case("case", paths), two)
    assert [line.partition(", expected")[0] for line in report.problems] == [f"{paths[1]}: found shape 6 x 5 x 5"]
    assert report.cropped_shape is None


def test_the_digest_depends_only_on_the_voxels(tmp_path):
    image = noise().round()
    digests = [
        examine(write_case(tmp_path / str(number), voxels)).digest
        for number, voxels in enumerate((image, image.astype(np.int16), image + 1, image.reshape(5, 6, 4)))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def damaged_label(folder, change):
    """Write a valid case and damage its label."""
    make_box_case(folder, "Tr", "box", 0)
    case = make_case("box", str(folder / "imagesTr" / "box.nii.gz"), str(folder / "labelsTr" / "box.nii.gz"))
    label = nib.load(case["label"])
    voxels, affine = np.asarray(label.dataobj), label.affine
    if change == "unreadable":
        content = gzip.decompress((folder / "labelsTr" / "box.nii.gz").read_bytes())
        (folder / "labelsTr" / "box.nii.gz").write_bytes(gzip.compress(content[:-9]))
    elif change == "shape and values":
        write_nifti(folder / "labelsTr" / "box.nii.gz", voxels[1:] + 2, affine)
    elif change == "affine":
        write_nifti(folder / "labelsTr" / "box.nii.gz", voxels, affine + np.eye(4)[:, [3, 0, 1, 2]])
    return case


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("nothing", []),
        ("unreadable", ["cannot be read"]),
        ("shape and values", ["found shape 35 x 28 x 18", "found label values 3 ("]),
        ("affine", ["expected the same affine"]),
    ],
)
def test_label_problems_are_reported_without_the_image(tmp_path, change, parts):
    case = damaged_label(tmp_path, change)
    if not parts:
        assert np.array_equal(read_checked_label(case, ZSCORE)[0], nib.load(case["label"]).dataobj)
        return
    with pytest.raises(InputError) as error:
        read_checked_label(case, ZSCORE)
    found = str(error.value).splitlines()
    assert [part in line for part, line in zip(parts, found, strict=True)] == [True] * len(parts)
    assert all(line.startswith(f"{case['label']}: ") for line in found)


def test_a_label_is_not_resampled_where_its_image_cannot_be(tmp_path):
    write_nifti(tmp_path / "image.nii.gz", np.ones((6, 6, 6), np.float32))
    write_nifti(tmp_path / "label.nii.gz", np.ones((6, 6, 6), np.uint8))
    case = make_case("case", str(tmp_path / "image.nii.gz"), str(tmp_path / "label.nii.gz"))
    description = DatasetDescription.from_json(DESCRIPTION | {"spacing": [2, 1e-9, 1e-9]}, "test")
    (problem,) = examine_case(case, "training", description, full=True).problems
    assert "once they are resampled" in problem

"""The data check as a command: tables, JSON, and all problems with exit status 2."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import write_nifti

from engine.data.cache import open_cache
from engine.data.cases import find_training_cases
from engine.data.datasets import DatasetDescription
from engine.runtime.errors import run
from load_datasets_transforms import training_pipelines
from tools import check_data


@pytest.fixture
def check(boxes, capsys):
    """Run the tool on the boxes; returns (exit status, stdout, error lines)."""

    def run_tool(*flags):
        arguments = ["--root", str(boxes), "--dataset", str(boxes / "boxes.json"), "--roi_size", "32", "32", "16"]
        status = run(check_data.main, check_data.parse_args([*arguments, *map(str, flags)]))
        captured = capsys.readouterr()
        return status, captured.out, [line for line in captured.err.splitlines() if line.startswith("error: ")]

    return run_tool


def damage(boxes):
    """Make five mistakes in five cases, one of which loses its label."""
    (boxes / "labelsTr" / "box_1.nii.gz").unlink()
    (boxes / "imagesVal" / "box_8.nii.gz").write_bytes(b"no volume")
    label, image = boxes / "labelsTr" / "box_0.nii.gz", boxes / "imagesTr" / "box_2.nii.gz"
    write_nifti(label, np.asarray(nib.load(label).dataobj) + 1)
    voxels = nib.load(image).get_fdata()
    voxels[0, 0, 0] = np.nan
    write_nifti(image, voxels)
    for kind in ("images", "labels"):
        shutil.copy(boxes / f"{kind}Val" / "box_9.nii.gz", boxes / f"{kind}Tr" / "copy.nii.gz")


def test_a_sound_dataset_has_its_tables(check):
    status, out, errors = check()
    assert (status, errors) == (0, [])
    rows = [line.split() for line in out.splitlines() if "box_" in line]
    assert [row[:2] for row in rows] == [
        *(["training", f"box_{number}"] for number in (0, 1, 2)),
        *(["validation", f"box_{number}"] for number in (8, 9)),
    ]
    assert all("36 x 28 x 18  1 x 1 x 1" in line for line in out.splitlines() if "box_" in line)
    assert "5 of 5 cases are padded to 32 x 32 x 16: 0 along R-L, 5 along A-P, 0 along I-S" in out
    assert ["left", "5600", "5"] in [line.split() for line in out.splitlines()]
    assert "warning" not in out


def test_every_problem_is_reported_and_every_case_has_its_row(check, boxes):
    damage(boxes)
    status, out, errors = check()
    assert status == 2
    parts = ["box_1 without a label", "labelsTr/box_0", "imagesTr/box_2", "imagesVal/box_8", "imagesTr/copy"]
    assert [part in line for part, line in zip(parts, errors, strict=True)] == [True] * 5
    rows = [line.split()[:3] for line in out.splitlines() if line.startswith("!  ")]
    assert [name for _, _, name in rows] == ["box_0", "box_2", "copy", "box_8", "box_9"]
    assert rows[3] == ["!", "validation", "box_8"]


def test_only_headers_are_read_on_request(check, boxes):
    damage(boxes)
    status, out, errors = check("--headers_only")
    assert status == 2
    assert ["box_1 without a label" in errors[0], "imagesVal/box_8" in errors[1]] == [True, True]
    assert len(errors) == 2
    assert "\nleft " not in out
    assert sum(line.startswith("   training") for line in out.splitlines()) == 3


@pytest.mark.parametrize("flags", [[], ["--headers_only"]])
def test_json_has_everything_and_is_the_only_output(check, boxes, flags):
    status, out, _ = check("--json", *flags)
    sound = json.loads(out)
    assert status == 0
    assert sound["problems"] == []
    assert sound["statistics"]["shape"]["median"] == [36, 28, 18]
    assert sound["padded_cases_by_axis"] == {"R-L": 0, "A-P": 5, "I-S": 0}
    assert sound["cases"][0]["pad"] == ["A-P"]
    assert sound["voxels_by_class"]["left"] == (0 if flags else 5 * 10 * 14 * 8)
    damage(boxes)
    status, out, errors = check("--json", *flags)
    broken = json.loads(out)
    assert status == 2
    assert [f"error: {problem}" for problem in broken["problems"]] == errors
    assert len(broken["cases"]) == 5
    assert [case["id"] for case in broken["cases"] if case["shape"] is None] == ["box_8"]


def test_the_stated_cache_size_agrees_with_the_pipelines(check, boxes, tmp_path):
    stated = json.loads(check("--json")[1])["cache_bytes"]
    description = DatasetDescription.read(boxes / "boxes.json")
    pipelines = training_pipelines(description, (32, 32, 16), crop_sample=1)
    for cases, transform in zip(find_training_cases(boxes, description), pipelines, strict=True):
        open_cache(cases, transform, tmp_path / "cache", num_workers=0)
    arrays = [np.load(path, mmap_mode="r").nbytes for path in (tmp_path / "cache").rglob("*.npy")]
    assert sum(arrays) <= stated
    # The boxes are not cropped; validation cases have no counts of crop candidates.
    assert stated - sum(arrays) == 2 * 2 * 8 * 36 * 28


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--root", "nowhere"], "--root: nowhere not found, expected a folder with imagesTr"),
        (["--dataset", "brain"], "--dataset: found 'brain'"),
    ],
)
def test_a_mistake_in_a_flag_is_one_line(check, flags, part):
    status, out, errors = check(*flags)
    assert (status, out) == (2, "")
    assert len(errors) == 1
    assert part in errors[0]

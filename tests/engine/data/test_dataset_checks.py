"""Checks across the cases of a dataset, in one process or two, and those at the start of training."""

import shutil
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import DESCRIPTION, write_nifti

from engine.data import dataset_checks
from engine.data.cases import find_splits, make_case
from engine.data.dataset_checks import check_cases, examine_cases
from engine.data.datasets import DatasetDescription
from engine.runtime.errors import InputError

BOXES = DatasetDescription.from_json(DESCRIPTION, "test")


def examine(root, full, description=BOXES):
    found = find_splits(Path(root), description, test=True)
    assert [part.problems for part in found.values()] == [[]] * len(found)
    return examine_cases({split: part.cases for split, part in found.items()}, description, 2, None if full else 0)


def warnings_of(report):
    return [line for lines in report.warnings.values() for line in lines]


def transfer(root, how, source, target):
    """Create a case from another one with ``how``, which takes source and target."""
    for kind in ("images", "labels"):
        how(*(root / f"{kind}{part}" / f"{name}.nii.gz" for part, name in (source, target)))


def link(source, target):
    target.symlink_to(source)


def hard_link(source, target):
    target.hardlink_to(source)


def rewrite_as_float64(source, target):
    image = nib.load(source)
    write_nifti(target, np.asarray(image.dataobj).astype(np.float64), image.affine)


@pytest.mark.parametrize("full", [False, True])
def test_a_valid_dataset_has_no_problems_or_warnings(boxes, full):
    report = examine(boxes, full)
    assert (report.problems, report.warnings) == ([], {})
    assert [case.split for case in report.cases] == ["training"] * 3 + ["validation"] * 2
    assert all((value is None) != full for case in report.cases for name, value in asdict(case).items() if name in FULL)


FULL = ("cropped_shape", "voxels_by_class", "digest")


@pytest.mark.parametrize(
    ("how", "full", "found"),
    [
        (link, False, "the same file"),
        (hard_link, False, "the same file"),
        (link, True, "the same voxels"),
        (shutil.copy, True, "the same voxels"),
        (rewrite_as_float64, True, "the same voxels"),
        (shutil.copy, False, None),
    ],
)
def test_a_case_in_two_splits_is_a_problem_and_within_one_a_warning(boxes, how, full, found):
    transfer(boxes, how, ("Val", "box_8"), ("Tr", "box_5"))
    transfer(boxes, how, ("Tr", "box_0"), ("Tr", "box_7"))
    report = examine(boxes, full)
    names = [["imagesTr/box_5", "imagesVal/box_8"], ["imagesTr/box_0", "imagesTr/box_7"]]
    for lines, files in zip((report.problems, warnings_of(report)), names, strict=True):
        assert len(lines) == (found is not None)
        assert all(found in line and all(name in line for name in files) for line in lines)
    marked = [case.id for case in report.cases if case.problems]
    assert marked == (["box_5", "box_8"] if found else [])


def test_an_id_in_two_splits_is_a_warning(boxes):
    (boxes / "imagesTs").mkdir()
    shutil.copy(boxes / "imagesVal" / "box_8.nii.gz", boxes / "imagesTs" / "box_1.nii.gz")
    report = examine(boxes, full=False)
    assert report.problems == []
    assert warnings_of(report) == ["box_1: found the same id in training and test, expected different patients"]


def test_a_class_absent_from_all_training_cases_is_a_warning(boxes):
    description = DatasetDescription.from_json(
        DESCRIPTION | {"labels": {"background": 0, "left": 1, "right": 2, "middle": 3}}, "test"
    )
    label = boxes / "labelsVal" / "box_8.nii.gz"
    write_nifti(label, np.full((36, 28, 18), 3, np.uint8), nib.load(label).affine)
    assert warnings_of(examine(boxes, True, description)) == [
        "found no voxel of middle in any of 3 training cases, expected every class in some of them"
    ]
    assert examine(boxes, False, description).warnings == {}


def test_a_case_too_large_for_memory_does_not_hide_other_problems(boxes, monkeypatch):
    def run_short(case, *rest):
        if case["id"] == "box_1":
            raise MemoryError("Unable to allocate 9 GiB")
        return examine_case(case, *rest)

    examine_case = dataset_checks.examine_case
    monkeypatch.setattr(dataset_checks, "examine_case", run_short)
    (boxes / "imagesVal" / "box_9.nii.gz").write_bytes(b"no volume")
    report = examine(boxes, True)
    assert [case.id for case in report.cases] == ["box_0", "box_1", "box_2", "box_8", "box_9"]
    assert "training case box_1: does not fit in memory" in report.problems[0]
    assert "box_9" in report.problems[1]


@pytest.mark.parametrize("full", [False, True])
def test_training_prints_warnings_and_raises_all_the_problems(boxes, capsys, full):
    transfer(boxes, link, ("Tr", "box_0"), ("Tr", "box_7"))
    for name in ("imagesTr/box_1", "labelsVal/box_9"):
        (boxes / f"{name}.nii.gz").write_bytes(b"no volume")
    label = boxes / "labelsTr" / "box_2.nii.gz"
    write_nifti(label, np.full((36, 28, 18), 9, np.uint8), nib.load(label).affine)
    with pytest.raises(InputError) as caught:
        check_cases({split: part.cases for split, part in find_splits(boxes, BOXES).items()}, BOXES, 0, full)
    files = ["imagesTr/box_1", *["labelsTr/box_2"] * full, "labelsVal/box_9"]
    lines = str(caught.value).splitlines()
    assert [line.partition(".nii")[0] for line in lines] == [f"{boxes}/{name}" for name in files]
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith(f"warning: {boxes}/imagesTr/box_0.nii.gz (training), {boxes}/imagesTr/box_7.nii.gz")


def check_as(rank, folder):
    """Check three missing cases as one of two processes; store the problems raised and the number of its checks."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    cases = [make_case(str(number), f"{folder}/{number}.nii") for number in range(3)]
    splits = {"training": cases[:2], "validation": cases[2:]}
    with patch.object(dataset_checks, "examine_case", wraps=dataset_checks.examine_case) as check:
        try:
            check_cases(splits, BOXES, 0, full=False)
        except InputError as error:
            results["problems"] = str(error).splitlines()
        results["checks"] = check.call_count
    torch.save(results, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_every_rank_raises_the_problems_of_all_ranks_in_the_order_of_the_cases(tmp_path):
    mp.spawn(check_as, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    for result in results:
        assert [line.partition(":")[0][-5:] for line in result["problems"]] == ["0.nii", "1.nii", "2.nii"]
    assert [result["checks"] for result in results] == [2, 1]

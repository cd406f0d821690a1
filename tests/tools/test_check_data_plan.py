"""check_data --write_description: plans of phantoms and of real volumes, which train as they are."""

import json
import re
import shlex
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import REAL_DATA, REPOSITORY, assert_one_line, real_data, write_nifti

from engine.data.datasets import DatasetDescription
from engine.runtime.errors import run
from tools import check_data

SMALL = ("--feat_size", 8, 8, 8, 8, "--kernel_size", 5, "--max_iter", 2, "--eval_step", 2, "--gpu", "cpu")


@pytest.fixture
def check(capsys):
    """Run the tool; returns (exit status, stdout, stderr)."""

    def run_tool(root, *flags):
        words = [str(word) for word in ("--root", root, *flags)]
        try:
            status = run(check_data.main, check_data.parse_args(words))
        except SystemExit as stop:  # argparse
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_tool


@pytest.fixture
def plan(check, tmp_path):
    """Plan for a folder; returns the written description, the words of the flags, and stdout."""

    def make(root, *flags):
        status, out, err = check(root, "--write_description", tmp_path / "plan.json", *flags)
        assert status == 0, err
        words = shlex.split((tmp_path / "plan.args").read_text(), comments=True)
        assert words[:2] == ["--dataset", str(tmp_path / "plan.json")]
        return DatasetDescription.read(tmp_path / "plan.json"), words, out

    return make


def lines(out):
    return dict(line.split(": ", 1) for line in out.partition("Plan:\n")[2].splitlines() if ": " in line)


def crop_of(words):
    return [int(word) for word in words[words.index("--roi_size") + 1 :][:3]]


def training_volumes(root):
    """Yield image and label of each training case, in RAS axis order, and the voxel size."""
    for path in sorted((root / "imagesTr").iterdir()):
        image, label = (
            nib.as_closest_canonical(nib.load(root / part / path.name)) for part in ("imagesTr", "labelsTr")
        )
        yield image.get_fdata(), label.get_fdata(), image.header.get_zooms()[:3]


def test_a_plan_of_phantoms_agrees_with_numpy_and_trains(phantoms, plan, train, tmp_path):
    images, labels, spacings = zip(*training_volumes(phantoms), strict=True)
    description, words, out = plan(phantoms)
    assert description.spacing == pytest.approx(np.median(spacings, axis=0), rel=5e-3)
    voxels = np.concatenate([image[label > 0] for image, label in zip(images, labels, strict=True)])
    assert description.windows[0] == pytest.approx(np.percentile(voxels, (0.5, 99.5)), abs=3)
    assert f"{voxels.size:,} of {voxels.size:,} labelled voxels" in lines(out)["intensity"]
    values = {value for path in phantoms.glob("labels*/*") for value in np.unique(nib.load(path).get_fdata())}
    assert description.classes == ("background", *(f"class_{value:.0f}" for value in sorted(values) if value))
    with_spleen = sum((label == 1).any() for label in labels)
    count = f"{with_spleen} of 2 training cases ({sum((label == 1).sum() for label in labels):,} voxels; "
    assert lines(out)["class_1"].startswith(count)
    assert crop_of(words) == [32, 32, 16]
    status, text, err = train(*words, "--root", phantoms, "--output", tmp_path / "run", "--num_workers", 0, *SMALL)
    assert status == 0, err
    assert f"{phantoms.name}: 2 training and 3 validation cases" in text


def write_thick(root, slices=(5, 5, 5, 5, 5, 2.5)):
    """Write CTs of 0.8 x 0.8 mm with these distances of slices; the last one has a structure in a single slice."""
    rng = np.random.default_rng(0)
    for number, distance in enumerate(slices):
        image = rng.normal(40, 10, (64, 72, 18))
        image[:4] = -1000
        label = np.zeros(image.shape, np.uint8)
        label[20:40, 20:40, 4:12] = 1
        label[50:52, 50:52, 3] = 2 if number == len(slices) - 1 else 0
        for part, voxels in (("images", image.astype(np.int16)), ("labels", label)):
            write_nifti(root / f"{part}Tr" / f"ct_{number}.nii.gz", voxels, np.diag([0.8, 0.8, distance, 1]))


def test_thick_slices_have_the_stated_rule(tmp_path, plan):
    write_thick(tmp_path / "thick")
    description, words, out = plan(tmp_path / "thick")
    assert description.spacing == pytest.approx((0.8, 0.8, np.percentile([5, 5, 5, 5, 5, 2.5], 10)))
    reason = "median of 6 training cases, from 0.8 x 0.8 x 2.5 to 0.8 x 0.8 x 5; along I-S, where slices are thick"
    assert reason in lines(out)["spacing"]
    assert crop_of(words) == [64, 64, 16]  # air is cropped, at 60 of 64 voxels
    assert lines(out)["validation"] == f"no case found in {tmp_path / 'thick'}, and training needs some"


def test_a_class_that_vanishes_at_the_planned_spacing_is_a_warning(tmp_path, plan):
    write_thick(tmp_path / "thick", (5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 1))
    out = plan(tmp_path / "thick")[2]
    assert "warning: training case ct_11: found class_2 (4 voxels), of which resampling leaves nothing" in out
    assert "warning: found classes of few voxels" not in out  # none are left


def test_what_prepared_data_lack_is_planned_and_the_rest_kept(boxes, plan):
    given = json.loads((boxes / "boxes.json").read_text())
    del given["spacing"], given["intensity"]
    (boxes / "given.json").write_text(json.dumps(given))
    description, _, out = plan(boxes, "--dataset", boxes / "given.json")
    assert description.to_json() == json.loads((boxes / "boxes.json").read_text()) | {"channels": ["image"]}
    found = lines(out)
    assert found["name"] == "boxes (as given)"
    assert found["labels"] == "background, left, right (as given)"
    assert found["channels"] == "image (one file per case)"
    assert found["intensity"] == "z-score (the modality is MRI)"


def test_json_has_the_plan_and_is_the_only_output(boxes, check, tmp_path):
    flags = ("--dataset", boxes / "boxes.json", "--write_description", tmp_path / "plan.json", "--json")
    status, out, _ = check(boxes, *flags, "--roi_size", 32, 32, 16)
    results = json.loads(out)
    assert status == 0
    assert results["plan"]["description"] == json.loads((tmp_path / "plan.json").read_text())
    assert results["plan"]["roi_size"] == results["roi_size"] == [32, 32, 16]
    assert results["padded_cases_by_axis"] == {"R-L": 0, "A-P": 5, "I-S": 0}
    assert "foreground" not in results["cases"][0]


def test_a_plan_keeps_the_flag_that_it_needs(boxes, plan):
    label = boxes / "labelsTr" / "box_0.nii.gz"
    write_nifti(label, np.asarray(nib.load(label).dataobj), np.diag([2, 2, 2, 1]))
    assert plan(boxes, "--fix_affine")[1][-1] == "--fix_affine"


def test_nothing_is_written_if_the_check_finds_problems(boxes, check, tmp_path):
    (boxes / "labelsTr" / "box_1.nii.gz").unlink()
    image = boxes / "imagesVal" / "box_8.nii.gz"
    image.write_bytes(image.read_bytes()[:-9])
    status, out, err = check(boxes, "--write_description", tmp_path / "plan.json")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (status, len(errors)) == (2, 2)
    assert "Plan:" not in out
    assert not list(tmp_path.glob("plan*"))


def test_a_dataset_without_a_plan_still_has_its_tables(tmp_path, check):
    rng = np.random.default_rng(0)
    label = np.zeros((20, 20, 20), np.uint8)
    label[5:10, 5:10, 5:10] = 1
    image = np.where(label, 7, rng.integers(-1000, 1000, label.shape)).astype(np.int16)
    write_nifti(tmp_path / "imagesTr" / "a.nii.gz", image)
    write_nifti(tmp_path / "labelsTr" / "a.nii.gz", label)
    status, out, err = check(tmp_path, "--write_description", tmp_path / "plan.json")
    assert_one_line((status, out, err), "channel image: found the intensity 7 in nearly all labelled voxels")
    assert ["class_1", "125", "1"] in [line.split() for line in out.splitlines()]
    assert not list(tmp_path.glob("plan*"))


@pytest.mark.parametrize("name", ["plan.json", "plan.args"])
def test_files_are_never_overwritten(boxes, check, tmp_path, name):
    (tmp_path / name).write_text("mine")
    result = check(boxes, "--write_description", tmp_path / "plan.json")
    assert_one_line(result, f"--write_description: found {tmp_path / name}, expected a new name")
    assert [path.read_text() for path in tmp_path.glob("plan*")] == ["mine"]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--write_description", "plan"], "--write_description: found plan, expected a name that ends with .json"),
        (["--write_description", "plan.json", "--headers_only"], "--headers_only: found it with --write_description"),
        (["--write_description", "plan.json", "--memory", "0"], "argument --memory: found '0', expected a number"),
        (["--write_description", "plan.json", "--memory", "1"], "--memory: found 1 GB, expected at least 1.1"),
        (["--write_description", "plan.json", "--dataset", "brain"], "--dataset: found 'brain', expected amos"),
        (["--dataset", "amos", "--memory", "8"], "--memory: found it without --write_description"),
        (["--write_description", "plan.json", "--root", "nowhere"], "nowhere/labelsTr: not found, expected a folder"),
        ([], "--dataset: found none, expected a dataset's name"),
    ],
)
def test_a_mistake_in_a_flag_is_one_line(boxes, check, tmp_path, monkeypatch, flags, part):
    monkeypatch.chdir(tmp_path)
    assert_one_line(check(boxes, *flags), part)
    assert not list(tmp_path.glob("plan*"))


def test_a_folder_without_labels_is_one_line(boxes, check, tmp_path):
    shutil.rmtree(boxes / "labelsTr")
    result = check(boxes, "--write_description", tmp_path / "plan.json")
    assert_one_line(result, f"{boxes / 'labelsTr'}: not found, expected a folder")


def test_a_missing_root_is_one_line_if_everything_is_given(check, tmp_path):
    root, file = tmp_path / "nowhere", tmp_path / "plan.json"
    status, _, err = check(root, "--dataset", "amos", "--write_description", file)
    assert status == 2
    assert [line.partition("error: ")[2] for line in err.splitlines() if "error: " in line] == [
        f"--root: {root} not found, expected a folder with imagesTr, labelsTr, imagesVal and labelsVal"
    ]


def link_cases(source, root, number):
    """Link the first cases of each split of a real dataset."""
    for part in ("Tr", "Val"):
        for path in sorted((source / f"labels{part}").iterdir())[:number]:
            for kind in ("images", "labels"):
                (root / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
                (root / f"{kind}{part}" / path.name).symlink_to(source / f"{kind}{part}" / path.name)


def documented_plans():
    """Return the choices of each plan in docs/data.md."""
    section = (REPOSITORY / "docs" / "data.md").read_text().partition("\n## A plan\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```text\nPlan:\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    return [block.partition("one pass")[0] for block in blocks]


@real_data("msd_hippocampus")
def test_the_documentation_shows_the_plan_of_the_whole_hippocampus_data(plan):
    out = plan(REAL_DATA / "msd_hippocampus")[2]
    assert f"\nPlan:\n{documented_plans()[0]}one pass: 120 iterations" in out


@real_data("msd_hippocampus")
def test_a_plan_of_real_mri_trains(tmp_path, plan, train):
    root = tmp_path / "hippocampus"
    link_cases(REAL_DATA / "msd_hippocampus", root, 3)
    description, words, _ = plan(root)
    assert (description.spacing, description.windows) == ((1, 1, 1), (None,))
    shapes = np.median([image.shape for image, _, _ in training_volumes(root)], axis=0)
    assert crop_of(words) == [round(side / 16) * 16 for side in shapes]
    status, _, err = train(*words, "--root", root, "--output", tmp_path / "run", "--num_workers", 0, *SMALL)
    assert status == 0, err


@real_data("ct_spleen")
def test_a_plan_of_a_real_ct_trains(tmp_path, plan, train):
    real, root = REAL_DATA / "ct_spleen", tmp_path / "spleen"
    root.mkdir()
    for name in ("imagesTr", "labelsTr"):  # the same volume is in Val
        (root / name).symlink_to(real / name)
    given = {"name": "spleen", "modality": "CT", "labels": {"background": 0, "spleen": 1}}
    (tmp_path / "given.json").write_text(json.dumps(given))
    description, words, out = plan(root, "--dataset", tmp_path / "given.json")
    assert f"\nPlan:\n{documented_plans()[1]}one pass: 1 iteration" in out
    ((image, label, spacing),) = training_volumes(root)
    assert description.spacing == pytest.approx(spacing, rel=1e-3)
    assert description.windows[0] == pytest.approx(np.percentile(image[label > 0], (0.5, 99.5)), abs=3)
    assert crop_of(words) == [160, 160, 32]
    arguments = (*words, "--root", real, "--output", tmp_path / "run", "--num_workers", 0, *SMALL)
    assert train(*arguments, "--max_iter", 1, "--crop_sample", 1)[0] == 0

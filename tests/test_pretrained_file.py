"""The weights that ship: they segment real volumes as their card says, and any scan without further flags."""

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import REAL_DATA, REPOSITORY, real_data, write_nifti

from engine.runtime.files import read_csv
from networks.pretrained import from_pretrained

FOLDER = REPOSITORY / "pretrained"
FILE = FOLDER / "hippocampus.safetensors"
CASES = ("hippocampus_190", "hippocampus_212", "hippocampus_249")
METHODS = ("Rep3D", "nnUNet")
CLASSES = ("anterior", "posterior")
EXPERIMENT = REPOSITORY / "experiments" / "long_training"
SCORES = read_csv(EXPERIMENT / "scores" / "scores.csv")


def mean_scores(method, *labels):
    """Format the means over all validation cases and some classes: Dice, HD95 and NSD."""
    own = [row for row in SCORES if row["method"] == method and row["class"] in labels]
    assert len(own) == 40 * len(labels)
    means = (np.mean([float(row[name]) for row in own]) for name in ("dice", "hd95_mm", "nsd"))
    return [f"{mean:{form}}" for mean, form in zip(means, (".3f", ".2f", ".3f"), strict=True)]


def test_the_file_is_small_and_says_what_it_is():
    size = FILE.stat().st_size / 1e6
    assert size < 8
    network = from_pretrained(FILE)
    assert network.config["network"] == "REP3D"
    described = json.loads((EXPERIMENT.parent / "hippocampus" / "dataset.json").read_text())
    assert network.description == described | {"channels": ["image"]}
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    card = (FOLDER / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card
    assert f"({size:.1f} MB)" in card
    assert f"{millions:.1f} million parameters in half precision" in card


def test_pages_have_the_means_of_the_scores():
    card = (FOLDER / "README.md").read_text()
    for name, labels in {**{label: (label,) for label in CLASSES}, "mean": CLASSES}.items():
        assert f"| {name} | {' | '.join(mean_scores('Rep3D', *labels))} |" in card
    page = (EXPERIMENT / "README.md").read_text()
    for method in METHODS:
        cells = [cell for pair in zip(*(mean_scores(method, label) for label in CLASSES), strict=True) for cell in pair]
        assert f"| {method} | {' | '.join(cells)} |" in page
    rep3d, nnunet = (mean_scores(method, *CLASSES)[0] for method in METHODS)
    assert f"small Rep3D {rep3d}, small nnU-Net {nnunet}" in (REPOSITORY / "README.md").read_text()


def test_the_page_of_the_experiment_has_the_numbers_of_its_files():
    page = " ".join((EXPERIMENT / "README.md").read_text().split())
    compared = json.loads((EXPERIMENT / "scores" / "scores.json").read_text())["comparisons"]
    rows = {row["metric"]: row for row in compared}
    for title, metric, form in (("Dice", "dice", ".3f"), ("HD95, mm", "hd95_mm", ".2f"), ("NSD", "nsd", ".3f")):
        row = rows[metric]
        mean, low, high = (f"{row[name]:+{form}}" for name in ("difference", "low", "high"))
        assert f"| {title} | {mean} | {row['median']:{form}} | {low} to {high} | {row['p']:.3f} |" in page
    steps = [row for row in read_csv(EXPERIMENT / "standard" / "validation.csv") if row["quantity"] == "minutes"]
    minutes = {row["arm"]: round(float(row["value"])) for row in steps}  # the last validation's
    assert f"{minutes['Rep3D']} minutes for Rep3D and {minutes['nnUNet']} for nnUNet" in page
    assert f"for {minutes['Rep3D']} minutes of one core" in (FOLDER / "README.md").read_text()
    runs = json.loads((EXPERIMENT / "standard" / "runs.json").read_text())["runs"]
    seconds = {method: round(runs[f"{method}, seed 0"]["seconds"]) for method in METHODS}
    assert f"{seconds['Rep3D']} and {seconds['nnUNet']} s." in page


@real_data("msd_hippocampus")
def test_all_volumes_have_the_handedness_that_the_card_states():
    """The posterior part of a left hippocampus runs to the left on its way to the front."""
    files = sorted((REAL_DATA / "msd_hippocampus").glob("labels*/*.nii.gz"))
    assert f"all {len(files)} volumes" in (FOLDER / "README.md").read_text()
    for file in files:
        label = nib.as_closest_canonical(nib.load(file))
        to_the_right, to_the_front, _ = np.nonzero(np.asarray(label.dataobj) == 2)
        assert np.polyfit(to_the_front, to_the_right, 1)[0] < 0, file.name


@real_data("msd_hippocampus")
def test_three_cases_reach_the_stated_dice_and_keep_their_labels_in_bf16(predict, tmp_path):
    root = tmp_path / "data"
    for part in ("imagesVal", "labelsVal"):
        (root / part).mkdir(parents=True)
        for case in CASES:
            name = f"{case}.nii.gz"
            (root / part / name).symlink_to(REAL_DATA / "msd_hippocampus" / part / name)
    for amp in ("off", "bf16"):
        words = ("--root", str(root), "--output", str(tmp_path / amp), "--gpu", "cpu", "--amp", amp)
        status, _, err = predict(*words, "--trained_weights", str(FILE))
        assert status == 0, err
    for case in CASES:
        files = [tmp_path / amp / f"{case}_seg.nii.gz" for amp in ("off", "bf16")]
        float32, bf16 = (np.asarray(nib.load(file).dataobj) for file in files)
        changed = np.count_nonzero(float32 != bf16)
        assert changed < 0.001 * float32.size
        assert changed < 0.005 * np.count_nonzero(float32)
    found = {row["case"]: row for row in read_csv(tmp_path / "off" / "dice.csv")}
    stated = {(row["case"], row["class"]): row for row in SCORES if row["method"] == "Rep3D"}
    for case in CASES:
        for label in CLASSES:
            assert float(found[case][label]) == pytest.approx(float(stated[case, label]["dice"]), abs=0.002)


def test_a_scan_needs_no_further_flags(predict, tmp_path, monkeypatch):
    voxels = np.random.default_rng(0).normal(100, 20, (30, 40, 30)).astype(np.float32)
    write_nifti(tmp_path / "scan.nii.gz", voxels)
    monkeypatch.chdir(tmp_path)
    status, _, err = predict("--trained_weights", str(FILE), "--images", "scan.nii.gz")
    assert status == 0, err
    scan, labels = nib.load("scan.nii.gz"), nib.load("predictions/scan_seg.nii.gz")
    assert np.array_equal(labels.affine, scan.affine)
    assert labels.shape == scan.shape
    assert set(np.unique(labels.dataobj)) <= {0, 1, 2}

"""Folders of labels and predictions for tests of tools.evaluate, and the command as a function."""

import csv
import json

import nibabel as nib
import numpy as np
from conftest import DESCRIPTION, write_nifti

from engine.runtime.errors import run
from tools import evaluate

AFFINE = np.diag([-0.8, 0.8, 3.0, 1])
REGIONS = {"regions": {"both": ["left", "right"]}, "surface_tolerance": {"left": 1.0, "both": 3.5}}


def make_label(number):
    """Make two boxes; the third case has no right one."""
    label = np.zeros((24, 20, 8), np.uint8)
    label[4:10, 4:12, 2:6] = 1
    label[14 + number : 20, 4:12, 2:6] = 2 if number < 2 else 0
    return label


def write_folders(folder):
    """Write three labels, the predictions "good" and "bad", and a description; return the folder."""
    for number in range(3):
        label = make_label(number)
        write_nifti(folder / "labels" / f"case_{number}.nii.gz", label, AFFINE)
        write_nifti(folder / "good" / f"case_{number}_seg.nii.gz", np.roll(label, 1, axis=1), AFFINE)
        write_nifti(folder / "bad" / f"case_{number}.nii.gz", np.roll(label, 1 + number, axis=0), AFFINE)
    (folder / "boxes.json").write_text(json.dumps(DESCRIPTION | REGIONS))
    return folder


def make_command(folders, capsys):
    """Make a function that runs the command on the folders; it returns (exit status, stdout, lines of errors)."""

    def score(*words, predictions=("good",), num_workers=0):
        command = ["--predictions", *(str(folders / name) for name in predictions)]
        command += ["--labels", str(folders / "labels"), "--dataset", str(folders / "boxes.json")]
        command += ["--num_workers", str(num_workers), *map(str, words)]
        status = run(evaluate.main, evaluate.parse_args(command))
        captured = capsys.readouterr()
        lines = captured.err.replace("\r", "\n").splitlines()
        return status, captured.out, [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]

    return score


def read_table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def change(path, edit, affine=None):
    image = nib.load(path)
    write_nifti(path, edit(np.asarray(image.dataobj).copy()), image.affine if affine is None else affine)


def put(value):
    def edit(voxels):
        voxels[3, 2, 1] = value
        return voxels

    return edit

"""Helpers of the tests of prediction: damage to files, and assertions about folders and errors."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
from conftest import write_nifti

NAMES = ("box_0", "box_1", "box_2")


def path_of(folder, name):
    return folder / f"{name}_seg.nii.gz"


def errors_at_the_end(err):
    """Return the error lines, after which no other line may come; progress bars erase themselves."""
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert lines[len(lines) - len(errors) :] == errors
    return errors


def copy_predictions(predicted, output, boxes):
    """Copy a folder of predictions, as if they were made from the same images in ``boxes``."""
    shutil.copytree(predicted, output)
    settings = json.loads((output / "settings.json").read_text())
    for name, source in settings["sources"].items():
        source["paths"] = [str(boxes / "imagesTr" / f"{name}.nii.gz")]
    (output / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    return output


def assert_same_files(folder, expected, names):
    """Assert that files are equal, apart from the paths of the images that were predicted."""
    for name in names:
        found, wanted = ((place / name).read_bytes() for place in (folder, expected))
        if name == "settings.json":
            found, wanted = (re.sub(rb'"paths": \[[^]]*\]', b"", content) for content in (found, wanted))
        assert found == wanted, name


def rewrite(path, change):
    image = nib.load(path)
    write_nifti(path, change(np.asarray(image.dataobj).copy()), image.affine)


def put(value):
    def change(voxels):
        voxels[3, 4, 5] = value
        return voxels

    return change


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

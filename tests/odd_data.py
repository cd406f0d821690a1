"""Datasets as users bring them: changes of the boxes, and what the commands say of them."""

import gzip
import json
import struct

import nibabel as nib
import numpy as np
import torch
from conftest import DESCRIPTION

from engine.runtime.errors import run
from tools import check_data

ITERATIONS = ("--max_iter", "2", "--eval_step", "2", "--full_check")


def rewrite(root, pattern, change):
    """Rewrite the files that match ``pattern`` with ``change(voxels, affine) -> (voxels, affine, edit of header)``."""
    for path in root.glob(pattern):
        image = nib.load(path)
        voxels, affine, edit = change(np.asanyarray(image.dataobj), image.affine.copy())
        changed = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
        edit(changed.header)
        nib.save(changed, path)


def nothing(header):
    pass


def describe(root, **changes):
    (root / "boxes.json").write_text(json.dumps(DESCRIPTION | changes))


def add_axes(root):
    rewrite(root, "imagesTr/*", lambda voxels, affine: (voxels[..., None], affine, nothing))
    rewrite(root, "labels*/*", lambda voxels, affine: (voxels[..., None, None], affine, nothing))


def read_weights(folder):
    return torch.load(folder / "last_checkpoint.pth", weights_only=True)["model"]


def edit_header(path, offset, layout, *values):
    """Write numbers into the header of a .nii.gz file as they are; nibabel would mend them."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(layout, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))


def drop_codes(root, pattern="*/*.nii.gz"):
    for path in root.glob(pattern):
        edit_header(path, 252, "<2h", 0, 0)
        assert nib.load(path).header["sform_code"] == 0


def check(root, *flags):
    return run(
        check_data.main, check_data.parse_args(["--root", str(root), "--dataset", str(root / "boxes.json"), *flags])
    )


def warnings_in(out):
    """List the warnings but the one that tests expect which predict the cases that they trained on."""
    lines = [line.removeprefix("warning: ") for line in out.splitlines() if line.startswith("warning: ")]
    return [line for line in lines if "among those that the weights were trained on" not in line]

"""Make the dataset of the fine-tuning experiment: the hippocampi of MSD Task04, divided into head, body and tail.

    python -m experiments.finetuning.relabel --root ../shared/data/msd_hippocampus --output runs/hippocampus_thirds

The original label maps have an anterior and a posterior part. Here both are one structure, cut into three parts of
equal length between its most anterior and its most posterior voxel: classes that the shipped weights do not know, as
those of another protocol would be. Images are linked, not copied.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from tqdm import tqdm

from engine.data.cases import find_all_cases, image_files
from engine.data.datasets import DatasetDescription
from engine.data.nifti import encode_labels, open_checked, read_voxels
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import new_output

DESCRIPTION = Path(__file__).parents[1] / "hippocampus" / "dataset.json"
PARTS = 3  # head 1, body 2, tail 3


def cut_into_thirds(label: NDArray[Any], affine: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Divide a structure from anterior to posterior into three parts of equal length.

    Args:
        label: label map (X, Y, Z); all labels above 0 are the structure.
        affine: (4, 4), from voxel indices to mm, right, anterior, superior.
    Returns: label map (X, Y, Z): 1 the most anterior part, 3 the most posterior one.
    """
    orientation = io_orientation(affine)
    (axis,) = np.flatnonzero(orientation[:, 0] == 1)
    structure = np.moveaxis(label > 0, axis, -1)
    occupied = np.flatnonzero(structure.any(axis=(0, 1)))
    if not occupied.size:
        return np.zeros(label.shape, np.uint8)
    first, length = occupied[0], np.ptp(occupied) + 1
    part = np.clip((np.arange(structure.shape[-1]) - first) * PARTS // length, 0, PARTS - 1)
    to_the_front = orientation[axis, 1] > 0
    values = PARTS - part if to_the_front else part + 1
    return np.moveaxis(structure * values, -1, axis).astype(np.uint8)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("relabel", description=__doc__)
    parser.add_argument("--root", metavar="DIR", type=Path, required=True, help="folder of MSD Hippocampus")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="new dataset folder")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the dataset folder: all labelled cases, in imagesTr and labelsTr."""
    found = find_all_cases(args.root, DatasetDescription.read(DESCRIPTION))
    if found.problems:
        raise InputError("\n".join(found.problems))
    cases = [case for case in found.cases if "label" in case]
    if not cases:
        raise InputError(f"--root: found no label in {args.root}, expected the folder of MSD Hippocampus")
    with new_output(args.output, "--output") as folder:
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True)
        for case in tqdm(cases, "cases"):
            (image,) = image_files(case)
            label = cut_into_thirds(read_voxels(case["label"]), open_checked(image).affine)
            (folder / "labelsTr" / f"{case['id']}.nii.gz").write_bytes(encode_labels(label, image))
            (folder / "imagesTr" / f"{case['id']}.nii.gz").symlink_to(Path(image).resolve())
    print(f"{len(cases)} cases in {args.output}")


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

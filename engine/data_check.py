"""Every case read once before work starts: a broken one stops a run in its first minute, not in its tenth hour."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from tqdm import tqdm

from engine.description import DatasetDescription
from engine.distributed import collect, deal, process_rank
from engine.errors import InputError
from engine.nifti import load_nifti

UNREADABLE = (OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError)
# Headers round their numbers: corners of image and label may lie this share of a voxel apart.
AFFINE_TOLERANCE = 0.1


def check_cases(cases: Sequence[dict[str, Any]], description: DatasetDescription, workers: int) -> None:
    """Read images and labels and compare them with each other and with the description.

    Of several processes each reads its part, and all of them raise what any of them found.

    Args:
        cases: "image" and, where there is one, "label" of each case.
        description: channels and classes to expect.
        workers: volumes that a process reads at the same time; 0 is taken for 1.
    Raises:
        InputError: a line for every problem: unreadable, not 3D, NaN or infinite voxels, image and label of different
            shape or affine, label values that are no declared class.
    """
    part = deal(cases)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        checks = pool.map(lambda case: check_case(case, description), part)
        bar = tqdm(checks, "checking cases", len(part), leave=False, disable=process_rank() != 0)
        found = collect(list(bar))
    if problems := [problem for of_case in found for problem in of_case]:
        raise InputError("\n".join(problems))


def check_case(case: dict[str, Any], description: DatasetDescription) -> list[str]:
    """The problems of one case, the first of each file; empty where all is well."""
    files = [case["image"]] if isinstance(case["image"], str) else case["image"]
    volumes_a_file = len(description.channels) // len(files)
    try:
        grids = [_check_image(path, volumes_a_file) for path in files]
        if "label" in case:
            files, grids = [*files, case["label"]], [*grids, _check_label(case["label"], description)]
    except InputError as error:
        return [str(error)]
    first, *others = zip(files, grids, strict=True)
    return [problem for other in others if (problem := _compare_grids(*first, *other))]


Grid = tuple[tuple[int, ...], NDArray[np.float64]]  # shape in voxels, affine to mm


def _check_image(path: str, volumes: int) -> Grid:
    voxels, grid = _read(path, volumes)
    if not np.isfinite(voxels).all():
        bad = np.count_nonzero(~np.isfinite(voxels))
        raise InputError(f"{path}: found {bad} NaN or infinite voxels, expected finite intensities")
    return grid


def _check_label(path: str, description: DatasetDescription) -> Grid:
    voxels, grid = _read(path, 1)
    classes = len(description.classes)
    wrong = [value for value in np.unique(voxels) if value not in range(classes)]
    if wrong:
        found = ", ".join(f"{value:g}" for value in wrong[:5])
        raise InputError(f"{path}: found label values {found}, expected whole numbers from 0 to {classes - 1}")
    return grid


def _read(path: str, volumes: int) -> tuple[NDArray[Any], Grid]:
    """Voxels and grid of a file that holds ``volumes`` volumes."""
    try:
        image = load_nifti(path)
        voxels = np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}), expected a whole NIfTI file") from error
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path}: found voxels of type {voxels.dtype}, expected real numbers")
    expected = 3 if volumes == 1 else 4
    if voxels.ndim != expected or voxels.size == 0 or voxels.shape[3:] not in ((), (volumes,)):
        shape = " x ".join(map(str, voxels.shape))
        last = "" if volumes == 1 else f" with {volumes} channels last"
        raise InputError(f"{path}: found {voxels.ndim}D of shape {shape}, expected a {expected}D volume{last}")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        raise InputError(f"{path}: found an affine that cannot be inverted, expected voxel axes that span the space")
    return voxels, (voxels.shape[:3], affine)


def _compare_grids(path: str, grid: Grid, other_path: str, other: Grid) -> str | None:
    (shape, affine), (other_shape, other_affine) = grid, other
    if shape != other_shape:
        found, expected = (" x ".join(map(str, sides)) for sides in (other_shape, shape))
        return f"{other_path}: found shape {found}, expected {expected} as in {path}"
    corners = np.array([(*corner, 1) for corner in product(*((0, side - 1) for side in shape))])
    distance = np.linalg.norm(corners @ (affine - other_affine).T, axis=1).max()
    voxel = np.linalg.norm(affine[:3, :3], axis=0).min()
    if distance > AFFINE_TOLERANCE * voxel:
        found = f"an affine that puts corners {distance:.3g} mm away from those of {path}"
        return f"{other_path}: found {found}, expected the same affine"
    return None

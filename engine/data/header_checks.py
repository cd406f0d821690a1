"""Headers of NIfTI files and all problems in them; no voxels are read."""

import math
import os
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.data.utils import compute_shape_offset, zoom_affine
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from engine.data.cases import Case, image_files
from engine.data.datasets import LARGEST, DatasetDescription
from engine.data.nifti import open_volume
from engine.runtime.errors import InputError

# Headers round their numbers: corners of image and label may differ by this share of a voxel.
AFFINE_TOLERANCE = 0.1
SMALLEST_SPACING, LARGEST_SPACING = 1e-6, 1e6  # mm: from microscopy to wrong units
FLAT = 1e-4  # voxel volume relative to a box with the same edges; below it the axes do not span the space
LARGEST_GRID = 2**31  # voxels; more, in float32, do not fit in the memory of any pipeline
DEFLATE_RATIO = 1032  # the largest possible ratio of unpacked to packed bytes in a .gz file


class Grid(NamedTuple):
    """Grid of a volume: number of voxels along each axis, and the affine from voxel indices to mm."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each axis, mm."""
        return tuple(map(float, np.linalg.norm(self.affine[:3, :3], axis=0)))

    def turn_to_ras(self) -> "Grid":
        """Flip and permute the axes to run right, anterior, superior as closely as possible."""
        turn = io_orientation(self.affine)
        shape = tuple(self.shape[axis] for axis in turn[:, 0].argsort())
        return Grid(shape, self.affine @ inv_ornt_aff(turn, self.shape))

    def resampled_shape(self, spacing: Sequence[float] | NDArray[np.floating]) -> tuple[int, ...]:
        """Compute the shape after MONAI's Spacing.

        Args:
            spacing: new voxel size along the grid's axes, mm.
        """
        spaced = zoom_affine(self.affine, spacing, diagonal=False)
        return tuple(map(int, compute_shape_offset(self.shape, self.affine, spaced)[0]))


class FileHeader(NamedTuple):
    """Header of one file.

    Args:
        path: path of the file.
        grid: grid of its volumes; None if the header does not define a valid one.
        problems: one line each.
    """

    path: str
    grid: Grid | None
    problems: list[str]


def problems_of(headers: Sequence[FileHeader]) -> list[str]:
    """List all problems of a case's headers: those of each header, and differences between their grids."""
    return [problem for header in headers for problem in header.problems] + compare_grids(headers)


def read_headers(case: Case, description: DatasetDescription) -> list[FileHeader]:
    """Read the headers of a case's files: images first, then the label, if any."""
    images = read_image_headers(case, description)
    return [*images, read_header(case["label"])] if "label" in case else images


def read_image_headers(case: Case, description: DatasetDescription) -> list[FileHeader]:
    """Read the headers of a case's image files.

    Args:
        case: case with its files.
        description: expected channels and spacing.
    """
    images = image_files(case)
    volumes = len(description.channels) // len(images)
    return [read_header(path, volumes, description.spacing) for path in images]


def read_header(path: str, volumes: int = 1, spacing: Sequence[float] | None = None) -> FileHeader:
    """Read the header of a file, and check it.

    Args:
        path: path of the file.
        volumes: expected number of volumes: 1, or the number of channels.
        spacing: voxel size that an image is resampled to, mm; None for a label, whose grid is that of the image.
    """
    try:
        image = open_volume(path)
    except InputError as error:
        return FileHeader(path, None, [str(error)])
    with np.errstate(all="ignore"):
        grid_problems = [*_check_shape(image, volumes), *_check_affine(image.affine)]
        found = [*_check_type(image), *grid_problems]
        grid = None
        if not grid_problems:
            grid = Grid(image.shape[:3], np.asarray(image.affine, dtype=np.float64))
            found += _check_file_size(image, path)
            found += _check_resampling(grid, spacing) if spacing is not None else []
    return FileHeader(path, grid, [f"{path}: {problem}" for problem in found])


def _check_type(image: nib.Nifti1Image) -> list[str]:
    kind = image.get_data_dtype()
    return [] if kind.kind in "iuf" else [f"found voxels of type {kind}, expected real numbers"]


def _check_shape(image: nib.Nifti1Image, volumes: int) -> list[str]:
    expected = 3 if volumes == 1 else 4
    if len(image.shape) != expected or image.shape[3:] not in ((), (volumes,)):
        last = "" if volumes == 1 else f" with {volumes} channels last, or one file per channel"
        return [f"found {len(image.shape)}D of shape {format_size(image.shape)}, expected a {expected}D volume{last}"]
    if min(image.shape) < 1:
        return [f"found shape {format_size(image.shape)}, expected voxels along every axis"]
    return []


def _check_affine(affine: NDArray[Any]) -> list[str]:
    if not (np.abs(affine) < LARGEST).all():  # NaN compares as not below
        return [f"found an affine that holds {np.abs(affine).max():g}, expected finite numbers below {LARGEST:g} mm"]
    steps = np.asarray(affine[:3, :3], dtype=np.float64)
    spacing = np.linalg.norm(steps, axis=0)
    if spacing.min() < SMALLEST_SPACING or spacing.max() > LARGEST_SPACING:
        return [
            f"found an affine with voxels of {format_size(spacing)} mm, expected sides from {SMALLEST_SPACING:g} to "
            f"{LARGEST_SPACING:g} mm"
        ]
    if abs(np.linalg.det(steps / spacing)) < FLAT:
        return ["found an affine that cannot be inverted, expected voxel axes that span the space"]
    return []


def _check_file_size(image: nib.Nifti1Image, path: str) -> list[str]:
    voxels: Any = image.dataobj
    declared = math.prod(image.shape) * image.get_data_dtype().itemsize + int(voxels.offset)
    size = os.path.getsize(path)
    most, reason = (size * DEFLATE_RATIO, " unpacked at most") if path.endswith(".gz") else (size, "")
    if declared <= most:
        return []
    return [f"found {size} bytes, {most}{reason}, expected the {declared} that its header declares"]


def _check_resampling(grid: Grid, spacing: Sequence[float]) -> list[str]:
    turned = grid.turn_to_ras()
    # An estimate first: the exact sides may exceed NumPy's integers.
    voxels = np.maximum(1, np.multiply(turned.shape, turned.spacing) / spacing).prod()
    if voxels <= LARGEST_GRID and math.prod(turned.resampled_shape(spacing)) <= LARGEST_GRID:
        return []
    return [
        f"found voxels of {format_size(turned.spacing)} mm, about {voxels:.2g} once they are resampled to "
        f"{format_size(spacing)} mm, expected at most {LARGEST_GRID}"
    ]


def compare_grids(headers: Sequence[FileHeader]) -> list[str]:
    """Report the files whose shape or affine differs from that of the first, one line each."""
    known = [(header.path, header.grid) for header in headers if header.grid is not None]
    found = (_compare(*known[0], *other) for other in known[1:])
    return [problem for problem in found if problem]


def _compare(path: str, grid: Grid, other_path: str, other: Grid) -> str:
    if grid.shape != other.shape:
        return f"{other_path}: found shape {format_size(other.shape)}, expected {format_size(grid.shape)} as in {path}"
    corners = np.array([(*corner, 1) for corner in product(*((0, side - 1) for side in grid.shape))])
    distance = np.linalg.norm(corners @ (grid.affine - other.affine).T, axis=1).max()
    if distance > AFFINE_TOLERANCE * min(grid.spacing):
        found = f"an affine that puts corners {distance:.3g} mm away from those of {path}"
        return f"{other_path}: found {found}, expected the same affine"
    return ""


def format_size(sides: Sequence[float]) -> str:
    """Format sides as text: 36 x 28 x 18."""
    return " x ".join(f"{side:.6g}" for side in sides)

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
from engine.data.nifti import open_volume, unit_of
from engine.runtime.errors import InputError
from engine.runtime.warning_lines import Warnings, collect_warnings, merge_warnings
from engine.runtime.wording import count_of

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
        warnings: one line by kind.
        unit: unit of lengths in the file.
    """

    path: str
    grid: Grid | None
    problems: list[str]
    warnings: dict[str, str]
    unit: str = "mm"


def review_headers(headers: Sequence[FileHeader], fix_affine: bool) -> tuple[list[str], Warnings]:
    """Return the problems and warnings of a case's headers: those of each header, and of their grids together.

    Args:
        headers: headers of the images, then of the label, if any.
        fix_affine: whether different affines are a warning.
    """
    problems, warnings = compare_grids(headers, fix_affine)
    warnings = merge_warnings([collect_warnings(header.warnings for header in headers), warnings])
    return [problem for header in headers for problem in header.problems] + problems, warnings


def read_headers(case: Case, description: DatasetDescription) -> list[FileHeader]:
    """Read the headers of a case's files: images first, then the label, if any."""
    images = read_image_headers(case, description)
    return [*images, read_header(case["label"], fix_affine=description.fix_affine)] if "label" in case else images


def read_image_headers(case: Case, description: DatasetDescription) -> list[FileHeader]:
    """Read the headers of a case's image files.

    Args:
        case: case with its files.
        description: expected channels and spacing.
    """
    first, *others = image_files(case)
    volumes = len(description.channels) // (1 + len(others))
    return [
        read_header(first, volumes, description.spacing),
        *(read_header(path, volumes, description.spacing, description.fix_affine) for path in others),
    ]


def read_header(
    path: str, volumes: int = 1, spacing: Sequence[float] | None = None, fix_affine: bool = False
) -> FileHeader:
    """Read the header of a file, and check it.

    Args:
        path: path of the file.
        volumes: expected number of volumes: 1, or the number of channels.
        spacing: voxel size that an image is resampled to, mm; None for a label, whose grid is that of the image.
        fix_affine: whether the affine does not matter, since that of another file counts.
    """
    try:
        image = open_volume(path)
    except InputError as error:
        return FileHeader(path, None, [str(error)], {})
    with np.errstate(all="ignore"):
        unit = "" if (found := unit_of(image)) == "mm" else f", of a header in {found}"
        shape = _check_shape(image, volumes, spacing is None)
        affine = [f"{line}{unit}" for line in _check_affine(image.affine)]
        problems = [*_check_type(image), *shape, *([] if fix_affine else affine)]
        grid, warnings = None, {}
        if not shape and affine and fix_affine:
            grid, warnings = Grid(image.shape[:3], np.eye(4)), {"affine": f"{affine[0]}; that of the image is used"}
        elif not shape and not affine:
            grid = Grid(image.shape[:3], np.asarray(image.affine, dtype=np.float64))
        if grid is not None:
            problems += _check_file_size(image, path)
        if grid is not None and not affine:
            resampling = [f"{line}{unit}" for line in _check_resampling(grid, spacing)] if spacing is not None else []
            problems += resampling
            warnings = _find_doubts(image, grid, None if resampling else spacing)
    return FileHeader(
        path,
        grid,
        [f"{path}: {problem}" for problem in problems],
        {kind: f"{path}: {line}" for kind, line in warnings.items()},
        unit_of(image),
    )


def _find_doubts(image: nib.Nifti1Image, grid: Grid, spacing: Sequence[float] | None) -> dict[str, str]:
    """Describe what a user may not expect of the position of the voxels, in one line by kind.

    Args:
        image: the file.
        grid: its grid.
        spacing: voxel size that it is resampled to, mm, if it is an image.
    """
    doubts, header, tolerance = {}, image.header, AFFINE_TOLERANCE * min(grid.spacing)
    pixdim = header.get_zooms()[:3]
    if (unit := unit_of(image)) != "mm":
        doubts["unit"] = f"found the unit {unit}, converted to voxels of {format_size(grid.spacing)} mm"
    elif header["sform_code"] <= 0 and header["qform_code"] <= 0:
        doubts["position"] = "found neither sform nor qform (both codes are 0), so the axes are taken for L, A, S"
    elif header["sform_code"] > 0 and np.abs(np.subtract(pixdim, grid.spacing)).max() > tolerance:
        sizes = f"{format_size(grid.spacing)} mm in the sform and {format_size(pixdim)} mm in pixdim"
        doubts["position"] = f"found voxels of {sizes}; the sform is used"
    elif header["sform_code"] > 1 and header["qform_code"] > 0:  # with the code 1, ITK uses the sform as well
        distance = corner_distance(grid, Grid(grid.shape, header.get_qform()))
        if distance > tolerance:
            doubts["position"] = f"found corners {distance:.3g} mm apart in sform and qform; the sform is used"
    if spacing is not None:
        turned = grid.turn_to_ras()
        sides = turned.resampled_shape(spacing)
        if any(after == 1 < before for before, after in zip(turned.shape, sides, strict=True)):
            size = f"{format_size(turned.shape)} voxels of {format_size(turned.spacing)} mm"
            doubts["thin"] = f"found {size}, {format_size(sides)} once they are resampled"
    return doubts


def _check_type(image: nib.Nifti1Image) -> list[str]:
    kind = image.get_data_dtype()
    return [] if kind.kind in "iuf" else [f"found voxels of type {kind}, expected real numbers"]


def _check_shape(image: nib.Nifti1Image, volumes: int, is_label: bool) -> list[str]:
    shape = image.shape
    if len(shape) < 3 or len(shape) > 4:
        expected = "a 3D volume" if volumes == 1 else f"a 4D volume with {volumes} channels last"
        return [f"found {len(shape)}D of shape {format_size(shape)}, expected {expected}"]
    if (found := math.prod(shape[3:])) != volumes:
        of_file = f"found {count_of(found, 'channel')} (shape {format_size(shape)})"
        if shape[0] == 1:
            of_file += ", with the axis of length 1 first instead of X, Y, Z"
        if is_label:
            return [f"{of_file}, expected a label map of one volume"]
        more = " channels, in this file or one file each" if volumes > 1 else " channel, as in the description"
        return [f"{of_file}, expected {volumes}{more}"]
    if min(shape) < 1:
        return [f"found shape {format_size(shape)}, expected voxels along every axis"]
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
    misnamed = not isinstance(voxels.file_like, str)  # then it is in memory already (engine.data.nifti)
    compressed = path.lower().endswith(".gz") != misnamed
    most, reason = (size * DEFLATE_RATIO, " unpacked at most") if compressed else (size, "")
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


def compare_grids(headers: Sequence[FileHeader], fix_affine: bool) -> tuple[list[str], Warnings]:
    """Compare the shape and affine of each file with those of the first.

    Args:
        headers: headers of a case.
        fix_affine: whether different affines are a warning, since that of the first file is used.
    Returns: a line for each problem, and the warnings.
    """
    known = [header for header in headers if header.grid is not None]
    problems, lines = [], []
    for header in known[1:]:
        first, expected, grid = known[0].path, known[0].grid, header.grid
        assert expected is not None
        assert grid is not None
        if grid.shape != expected.shape:
            found = f"{header.path}: found shape {format_size(grid.shape)}"
            problems.append(f"{found}, expected {format_size(expected.shape)} as in {first}")
        elif "affine" in header.warnings:  # it has no valid one
            continue
        elif (distance := corner_distance(expected, grid)) > AFFINE_TOLERANCE * min(expected.spacing):
            found = f"{header.path}: found an affine that puts corners {distance:.3g} mm away from those of {first}"
            units = {known[0].unit, header.unit}
            if fix_affine:
                lines.append(f"{found}; that of the image is used")
            elif len(units) > 1:
                problems.append(f"{found}, expected the same affine; units are {known[0].unit} and {header.unit}")
            else:
                problems.append(f"{found}, expected the same affine; if the voxels match, use --fix_affine")
    return problems, {"affine": lines} if lines else {}


def corner_distance(grid: Grid, other: Grid) -> float:
    """Return the largest distance between the same corners of two grids of one shape, mm."""
    corners = np.array([(*corner, 1) for corner in product(*((0, side - 1) for side in grid.shape))])
    return float(np.linalg.norm(corners @ (grid.affine - other.affine).T, axis=1).max())


def format_size(sides: Sequence[float]) -> str:
    """Format sides as text: 36 x 28 x 18."""
    return " x ".join(f"{side:.6g}" for side in sides)

"""Examination of one case: properties of its files, and all problems in them."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.cases import Case
from engine.data.datasets import DatasetDescription
from engine.data.header_checks import (
    FileHeader,
    Grid,
    compare_grids,
    problems_of,
    read_headers,
)
from engine.data.nifti import read_voxels, turn_to_ras
from engine.runtime.errors import InputError, raise_problems

MOST_SATURATED = 0.5  # share of the voxels in the foreground box
LARGEST_FLOAT32 = np.finfo(np.float32).max  # the pipelines compute in float32; no NaN compares below it
LISTED = 5  # invalid label values that a message lists
CHUNK = 2**22  # voxels hashed at a time


@dataclass
class CaseReport:
    """Properties and problems of a case; a property is None if it could not be read or was not requested.

    Axes run right-left, anterior-posterior, inferior-superior, whatever their order in the files.

    Args:
        id: id of the case.
        split: "training", "validation" or "test".
        files: paths of the images, then of the label, if any.
        problems: one line each.
        warnings: one line each.
        shape: voxels along the three axes.
        spacing: voxel size, mm.
        resampled_shape: shape at the dataset's spacing.
        cropped_shape: estimated shape after the foreground crop, accurate to one voxel of the file at each end.
        voxels_by_class: number of the label file's voxels by class name.
        share_low, share_high: shares of the voxels in the foreground box at or below the low end of the intensity
            window and at or above its high end; also None without a window.
        digest: digest of the images' voxels, independent of data type and compression.
    """

    id: str
    split: str
    files: list[str]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    shape: list[int] | None = None
    spacing: list[float] | None = None
    resampled_shape: list[int] | None = None
    cropped_shape: list[int] | None = None
    voxels_by_class: dict[str, int] | None = None
    share_low: float | None = None
    share_high: float | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Name of the case in messages."""
        return f"{self.split} case {self.id}"

    @property
    def final_shape(self) -> list[int] | None:
        """Shape of the volume that crops are drawn from, as far as it is known."""
        return self.cropped_shape or self.resampled_shape


def examine_case(case: Case, split: str, description: DatasetDescription, full: bool) -> CaseReport:
    """Examine a case: its properties, problems and warnings.

    Args:
        case: "id", "image" (one path, or one per channel) and, if any, "label".
        split: name of the case's split.
        description: expected channels, classes, spacing and window.
        full: whether to read the voxels as well, not only the headers.
    """
    headers = read_headers(case, description)
    report = CaseReport(case["id"], split, [header.path for header in headers])
    report.problems = problems_of(headers)
    grid = headers[0].grid
    if grid is not None:
        turned = grid.turn_to_ras()
        report.shape, report.spacing = list(turned.shape), list(turned.spacing)
        if not headers[0].problems:
            report.resampled_shape = list(turned.resampled_shape(description.spacing))
    if full:
        comparable = not report.problems
        if "label" in case:
            *headers, label = headers
            _examine_label(report, label, description)
        _examine_images(report, headers, grid if comparable else None, description)
    return report


def read_checked_label(case: Case, description: DatasetDescription) -> NDArray[np.uint8]:
    """Read and check the label map (X, Y, Z) of a case.

    Args:
        case: "image" and "label".
        description: expected channels and classes.
    Raises:
        InputError: one line per problem: an unreadable file, a grid that differs from the image's, undeclared values.
    """
    image, *_, label = read_headers(case, description)
    voxels, found = _read_checked(label, lambda voxels: check_classes(voxels, len(description.classes)))
    raise_problems([*label.problems, *compare_grids([image, label]), *found])
    assert voxels is not None
    return voxels.astype(np.uint8)


def check_intensities(voxels: NDArray[Any]) -> list[str]:
    """Check the voxels of an image, and return their problem, if any."""
    if voxels.dtype.kind != "f" or (finite := np.abs(voxels) <= LARGEST_FLOAT32).all():
        return []
    return [f"found {np.count_nonzero(~finite)} NaN or infinite voxels, expected finite intensities (in float32)"]


def check_classes(voxels: NDArray[Any], classes: int) -> list[str]:
    """Check the voxels of a label map, and return their problem, if any: values other than 0, 1, ..., classes - 1."""
    with np.errstate(invalid="ignore"):
        whole = voxels.astype(np.uint8)
    wrong = (whole != voxels) | (whole >= classes)
    if not wrong.any():
        return []
    values = np.unique(voxels[wrong])
    found = ", ".join(f"{value:g}" for value in values[:LISTED])
    more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
    return [f"found label values {found}{more}, expected whole numbers from 0 to {classes - 1}"]


def _read_checked(
    header: FileHeader, check: Callable[[NDArray[Any]], list[str]]
) -> tuple[NDArray[Any] | None, list[str]]:
    """Read and check the voxels of a file; returns None for them if header or voxels have a problem."""
    if header.problems:
        return None, []
    try:
        voxels = read_voxels(header.path)
    except InputError as error:
        return None, [str(error)]
    found = [f"{header.path}: {problem}" for problem in check(voxels)]
    return (None if found else voxels), found


def _examine_label(report: CaseReport, header: FileHeader, description: DatasetDescription) -> None:
    names = description.classes
    voxels, found = _read_checked(header, lambda voxels: check_classes(voxels, len(names)))
    report.problems += found
    if voxels is None:
        return
    counts = np.zeros(len(names), np.int64)
    for slab in np.moveaxis(voxels, -1, 0):  # slice by slice: bincount needs eight bytes per voxel
        counts += np.bincount(slab.astype(np.uint8).ravel(), minlength=len(names))
    report.voxels_by_class = {name: int(count) for name, count in zip(names, counts, strict=True)}
    if not any(counts[1:]):
        report.warnings.append(f"{report.name}: found no labelled voxel in {header.path}")


def _examine_images(
    report: CaseReport, headers: Sequence[FileHeader], grid: Grid | None, description: DatasetDescription
) -> None:
    volumes = []
    for header in headers:
        voxels, found = _read_checked(header, check_intensities)
        report.problems += found
        if voxels is not None:
            volumes.append(voxels)
    if len(volumes) < len(headers):
        return
    report.digest = _digest(volumes)
    if grid is not None:
        channels = [volume[(..., *channel)] for volume in volumes for channel in np.ndindex(volume.shape[3:])]
        _measure(report, [turn_to_ras(channel, grid.affine) for channel in channels], description)


def _digest(volumes: Sequence[NDArray[Any]]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for volume in volumes:
        whole.update(repr(volume.shape).encode())
        flat = volume.reshape(-1, order="F")
        for start in range(0, flat.size, CHUNK):
            whole.update(flat[start : start + CHUNK].astype("<f4").tobytes())
    return whole.hexdigest()


def _measure(report: CaseReport, channels: Sequence[NDArray[Any]], description: DatasetDescription) -> None:
    """Measure foreground box, saturation and constant channels; the channels (X, Y, Z) are in RAS axis order."""
    for name, channel in zip(description.channels, channels, strict=True):
        if channel.min() == channel.max():
            which = f" of channel {name}" if len(channels) > 1 else ""
            report.warnings.append(f"{report.name}: found {channel.max():g} in every voxel{which}")
    low, high = description.window or (-math.inf, math.inf)
    above = np.any([channel > max(low, channel.min()) for channel in channels], axis=0)
    box = _bounding_box(above)
    assert report.spacing is not None
    assert report.resampled_shape is not None
    scale = np.divide(report.spacing, description.spacing)
    # Interpolation ends the foreground between its last voxel and the next one: half way, on average.
    first = np.ceil(([part.start - 0.5 for part in box]) * scale).clip(min=0)
    last = np.minimum(np.floor([part.stop - 0.5 for part in box] * scale), np.subtract(report.resampled_shape, 1))
    report.cropped_shape = [int(side) for side in (last - first + 1).clip(min=1)]
    if description.window is None:
        return
    inside = [channel[box] for channel in channels]
    total = sum(channel.size for channel in inside)
    report.share_low = sum(np.count_nonzero(channel <= low) for channel in inside) / total
    report.share_high = sum(np.count_nonzero(channel >= high) for channel in inside) / total
    if report.share_low + report.share_high > MOST_SATURATED:
        report.warnings.append(
            f"{report.name}: found {report.share_low:.0%} of the foreground box's voxels at or below {low:g} and "
            f"{report.share_high:.0%} at or above {high:g}, expected most of them inside that intensity window"
        )


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Find the smallest box that contains all True voxels; the whole volume if there are none."""
    if not mask.any():
        return tuple(slice(0, side) for side in mask.shape)
    places = (np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in places)

"""One case looked at closely: what its files hold, and all that is wrong with them."""

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

MOST_SATURATED = 0.5  # share of the voxels that training sees
LARGEST_FLOAT32 = np.finfo(np.float32).max  # what the pipelines compute in; no NaN is below it
LISTED = 5  # wrong label values a message names
CHUNK = 2**22  # voxels hashed at a time


@dataclass
class CaseReport:
    """What is known of a case; None where that could not be read, or was not asked for.

    Axes run right-left, anterior-posterior, inferior-superior, whatever the files' order.

    Args:
        id: of the case.
        split: "training", "validation" or "test".
        files: images first, then the label, where there is one.
        problems: a line each.
        warnings: a line each.
        shape: voxels along the three axes.
        spacing: voxel size, mm.
        resampled_shape: shape at the dataset's spacing.
        cropped_shape: estimate of the shape after the foreground crop, good to a voxel of the file at each end.
        voxels_by_class: of the label, by class name; the file's voxels.
        share_low, share_high: of the voxels in the foreground's box, those at or below the low end of the intensity
            window, and at or above the high end; None without a window, too.
        digest: of the images' voxels, whatever their type and compression.
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
        """The case, for messages."""
        return f"{self.split} case {self.id}"

    @property
    def final_shape(self) -> list[int] | None:
        """The shape that crops are taken from, as far as it is known."""
        return self.cropped_shape or self.resampled_shape


def examine_case(case: Case, split: str, description: DatasetDescription, full: bool) -> CaseReport:
    """Everything about a case.

    Args:
        case: "id", "image" (a path, or one a channel) and, where there is one, "label".
        split: that it belongs to.
        description: channels, classes, spacing and window to expect.
        full: read the voxels too, not the headers alone.
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
    """The label map (X, Y, Z) of a case.

    Args:
        case: "image" and "label".
        description: channels and classes to expect.
    Raises:
        InputError: a line for all that is wrong: unreadable, on another grid than the image, undeclared values.
    """
    image, *_, label = read_headers(case, description)
    voxels, found = _read_checked(label, lambda voxels: check_classes(voxels, len(description.classes)))
    raise_problems([*label.problems, *compare_grids([image, label]), *found])
    assert voxels is not None
    return voxels.astype(np.uint8)


def check_intensities(voxels: NDArray[Any]) -> list[str]:
    """The problem of an image's voxels, if there is one."""
    if voxels.dtype.kind != "f" or (finite := np.abs(voxels) <= LARGEST_FLOAT32).all():
        return []
    return [f"found {np.count_nonzero(~finite)} NaN or infinite voxels, expected finite intensities (in float32)"]


def check_classes(voxels: NDArray[Any], classes: int) -> list[str]:
    """The problem of a label's voxels, if there is one: values that are not 0, 1, ..., classes - 1."""
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
    """The voxels of a file, and their problems; no voxels where there are any, in the header or here."""
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
    for slab in np.moveaxis(voxels, -1, 0):  # bincount takes eight bytes a voxel
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
    """Foreground box, saturation, constant channels; of channels (X, Y, Z) whose axes run right, anterior, superior."""
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
    # Interpolation ends the foreground somewhere between its last voxel and the next: half way, on average.
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
    """The smallest box with all that is True; the whole volume where nothing is."""
    if not mask.any():
        return tuple(slice(0, side) for side in mask.shape)
    places = (np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in places)

"""Examination of one case: properties of its files, and all problems in them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from numpy.typing import NDArray

from engine.data.cases import Case
from engine.data.datasets import DatasetDescription, LabelValues
from engine.data.foreground import Foreground, sample_foreground
from engine.data.header_checks import (
    FileHeader,
    Grid,
    compare_grids,
    read_headers,
    review_headers,
)
from engine.data.intensity_checks import Extent, check_intensities, fill_nan, measure_channels
from engine.data.labels import to_classes
from engine.data.nifti import read_voxels, turn_to_ras
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.warning_lines import Warnings, collect_warnings, merge_warnings
from engine.runtime.wording import count_of

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
        warnings: lines by kind.
        shape: voxels along the three axes.
        spacing: voxel size, mm.
        resampled_shape: shape at the dataset's spacing.
        cropped_shape: estimated shape after the foreground crop, accurate to one voxel of the file at each end.
        voxels_by_class: number of the label file's voxels by class name.
        resampled_voxels_by_class: the same after resampling; None also if that is no coarser than the file.
        share_low, share_high: as in ``Measures``.
        digest: digest of the images' voxels, independent of data type and compression.
        foreground: labelled voxels, on request.
    """

    id: str
    split: str
    files: list[str]
    problems: list[str] = field(default_factory=list)
    warnings: Warnings = field(default_factory=dict)
    shape: list[int] | None = None
    spacing: list[float] | None = None
    resampled_shape: list[int] | None = None
    cropped_shape: list[int] | None = None
    voxels_by_class: dict[str, int] | None = None
    resampled_voxels_by_class: dict[str, int] | None = None
    share_low: float | None = None
    share_high: float | None = None
    digest: str | None = None
    foreground: Foreground | None = None

    @property
    def name(self) -> str:
        """Name of the case in messages."""
        return f"{self.split} case {self.id}"

    @property
    def final_shape(self) -> list[int] | None:
        """Shape of the volume that crops are drawn from, as far as it is known."""
        return self.cropped_shape or self.resampled_shape

    def estimate_crop(self, box: Sequence[slice], spacing: Sequence[float]) -> list[int]:
        """Estimate the shape after the foreground crop of a case with a known grid.

        Args:
            box: bounding box of the foreground, voxels of the file.
            spacing: voxel size that the case is resampled to, mm.
        """
        assert self.spacing is not None
        assert self.resampled_shape is not None
        scale = np.divide(self.spacing, spacing)
        # Interpolation ends the foreground between its last voxel and the next one: half way, on average.
        first = np.ceil(([part.start - 0.5 for part in box]) * scale).clip(min=0)
        last = np.minimum(np.floor([part.stop - 0.5 for part in box] * scale), np.subtract(self.resampled_shape, 1))
        return [int(side) for side in (last - first + 1).clip(min=1)]

    def warn(self, kind: str, line: str) -> None:
        """Add a warning."""
        self.warnings.setdefault(kind, []).append(f"{self.name}: {line}")


def examine_case(
    case: Case, split: str, description: DatasetDescription, full: bool, foreground: bool = False
) -> CaseReport:
    """Examine a case: its properties, problems and warnings.

    Args:
        case: "id", "image" (one path, or one per channel) and, if any, "label".
        split: name of the case's split.
        description: expected channels, classes, spacing and window.
        full: whether to read the voxels as well, not only the headers.
        foreground: whether to keep intensities of the voxels that are read, for a plan.
    """
    headers = read_headers(case, description)
    report = CaseReport(case["id"], split, [header.path for header in headers])
    report.problems, report.warnings = review_headers(headers, description.fix_affine)
    grid = headers[0].grid
    if grid is not None:
        turned = grid.turn_to_ras()
        report.shape, report.spacing = list(turned.shape), list(turned.spacing)
        if not headers[0].problems:
            report.resampled_shape = list(turned.resampled_shape(description.spacing))
    if full:
        comparable = not report.problems
        classes = None
        if "label" in case:
            *headers, label = headers
            if description.fix_affine:
                label = label._replace(grid=grid)
            found = _examine_label(report, label, description)
            classes = found if foreground else None  # otherwise its memory is free while the images are read
        channels = _examine_images(report, headers, description)
        if channels and comparable and grid is not None:
            extent = _measure(report, [turn_to_ras(channel, grid.affine) for channel in channels], description)
            if foreground:
                report.foreground = sample_foreground(channels, classes, extent)
    return report


def read_checked_label(case: Case, description: DatasetDescription) -> tuple[NDArray[np.uint8], Warnings]:
    """Read and check the label map of a case.

    Args:
        case: "image" and "label".
        description: expected channels and classes.
    Returns: class indices (X, Y, Z), and warnings about the label.
    Raises:
        InputError: one line per problem: an unreadable file, a grid that differs from the image's, undeclared values.
    """
    image, *_, label = read_headers(case, description)
    classes, found = read_classes(label, description.labels)
    different, warnings = compare_grids([image, label], description.fix_affine)
    raise_problems([*label.problems, *different, *found])
    assert classes is not None
    return classes, merge_warnings([collect_warnings([label.warnings]), warnings])


def _read(header: FileHeader) -> tuple[NDArray[Any] | None, list[str]]:
    """Read the voxels of a file, or the problem in doing so; None without a line if the header has a problem."""
    if header.problems:
        return None, []
    try:
        return read_voxels(header.path), []
    except InputError as error:
        return None, [str(error)]


def read_classes(header: FileHeader, labels: LabelValues) -> tuple[NDArray[np.uint8] | None, list[str]]:
    """Read a label map as class indices; None if header or voxels have a problem."""
    voxels, problems = _read(header)
    if voxels is None:
        return None, problems
    classes, found = to_classes(voxels, labels)
    return None if found else classes, [f"{header.path}: {problem}" for problem in found]


def _examine_label(report: CaseReport, header: FileHeader, description: DatasetDescription) -> NDArray[np.uint8] | None:
    """Examine the label map, and return its class indices if they are valid."""
    classes, found = read_classes(header, description.labels)
    report.problems += found
    if classes is None:
        return None
    report.voxels_by_class = counts = count_classes(classes, description.classes)
    if not any(list(counts.values())[1:]):
        report.warn("unlabelled", f"found no labelled voxel in {header.path}")
    if (
        header.grid is None
        or report.resampled_shape is None
        or not np.any(np.greater(description.spacing, header.grid.turn_to_ras().spacing))
    ):
        return classes
    resampled = resample_label(classes, header.grid, description.spacing)
    report.resampled_voxels_by_class = left = count_classes(resampled, description.classes)
    vanished = [f"{name} ({count_of(count, 'voxel')})" for name, count in counts.items() if count and not left[name]]
    if vanished:
        report.warn("vanished", f"found {', '.join(vanished)}, of which resampling leaves nothing")
    return classes


def count_classes(classes: NDArray[np.uint8], names: Sequence[str]) -> dict[str, int]:
    """Count the voxels of each class in a label map (X, Y, Z)."""
    counts = np.zeros(256, np.int64)
    for slab in np.moveaxis(classes, -1, 0):  # slice by slice: bincount needs eight bytes per voxel
        counts += np.bincount(slab.ravel(), minlength=256)
    return {name: int(counts[index]) for index, name in enumerate(names)}


def resample_label(classes: NDArray[np.uint8], grid: Grid, spacing: Sequence[float]) -> NDArray[np.uint8]:
    """Resample a label map (X, Y, Z) as the pipelines do.

    Args:
        classes: label map.
        grid: its grid.
        spacing: new voxel size along right-left, anterior-posterior and inferior-superior, mm.
    """
    volume = MetaTensor(torch.from_numpy(classes)[None], affine=torch.from_numpy(grid.affine))
    turned = Orientation(axcodes="RAS", labels=None)(volume)
    resampled = Spacing(spacing, mode="nearest", dtype=np.float32)(turned)
    return resampled.numpy()[0].astype(np.uint8)


def _examine_images(
    report: CaseReport, headers: Sequence[FileHeader], description: DatasetDescription
) -> list[NDArray[Any]]:
    """Examine the images, and return their channels (X, Y, Z), NaN filled, or none if any has a problem."""
    volumes = []
    for header in headers:
        voxels, found = _read(header)
        if voxels is not None:
            found = check_intensities(_split_channels(voxels), description.nan_is_minimum)
            found = [f"{header.path}: {line}" for line in found]
        report.problems += found
        if voxels is not None and not found:
            volumes.append(voxels)
    if len(volumes) < len(headers):
        return []
    report.digest = _digest(volumes)
    channels = [channel for volume in volumes for channel in _split_channels(volume)]
    if missing := sum(fill_nan(channel) for channel in channels):
        report.warn("nan", f"found {count_of(missing, 'NaN voxel')}, taken for the minimum")
    return channels


def _split_channels(volume: NDArray[Any]) -> list[NDArray[Any]]:
    """List the channels (X, Y, Z) of a volume (X, Y, Z) or (X, Y, Z, channels)."""
    return [volume[(..., *channel)] for channel in np.ndindex(volume.shape[3:])]


def _digest(volumes: Sequence[NDArray[Any]]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for volume in volumes:
        whole.update(repr(volume.shape).encode())
        flat = volume.reshape(-1, order="F")
        for start in range(0, flat.size, CHUNK):
            whole.update(flat[start : start + CHUNK].astype("<f4").tobytes())
    return whole.hexdigest()


def _measure(report: CaseReport, channels: Sequence[NDArray[Any]], description: DatasetDescription) -> Extent:
    """Measure the channels (X, Y, Z), in RAS axis order, of a case with a known grid."""
    measures = measure_channels(channels, description)
    report.share_low, report.share_high = measures.share_low, measures.share_high
    for kind, lines in measures.warnings.items():
        for line in lines:
            report.warn(kind, line)
    report.cropped_shape = report.estimate_crop(measures.box, description.spacing)
    return measures.extent

"""Checks and measures of an image's voxels."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from engine.data.datasets import DatasetDescription, Window
from engine.runtime.warning_lines import Warnings
from engine.runtime.wording import count_of

LARGEST_FLOAT32 = np.finfo(np.float32).max  # the pipelines compute in float32; no NaN compares below it
MOST_SATURATED = 0.5  # share of the voxels in the foreground box
MOST_LABELS = 20  # different values; an image has more
SAMPLED_SIDE = 32  # voxels along an axis
LEAST_CONTRAST = 0.05  # range of an image as a share of its window's


class Extent(NamedTuple):
    """Extent of an image's intensities: enough to find the bounding box of its foreground for any windows.

    Args:
        minima: minimum of each channel.
        maxima: for each channel and each axis the maximum of every plane across the axis.
    """

    minima: list[float]
    maxima: list[list[NDArray[Any]]]

    @classmethod
    def of(cls, channels: Sequence[NDArray[Any]]) -> Self:
        """Measure the channels (X, Y, Z) of an image."""
        maxima = [[channel.max(axis=others) for others in ((1, 2), (0, 2), (0, 1))] for channel in channels]
        return cls([float(channel.min()) for channel in channels], maxima)

    def box(self, windows: Sequence[Window | None]) -> tuple[slice, ...]:
        """Find the smallest box of all foreground voxels, the whole volume if there are none.

        Args:
            windows: window of each channel, whose foreground is above the window's low end and its own minimum.
        """
        lows = [
            low if window is None else max(low, window[0]) for low, window in zip(self.minima, windows, strict=True)
        ]
        planes = [
            np.flatnonzero(np.any([maxima > low for maxima, low in zip(axis, lows, strict=True)], axis=0))
            for axis in zip(*self.maxima, strict=True)
        ]
        if not all(found.size for found in planes):
            return tuple(slice(0, len(maxima)) for maxima in self.maxima[0])
        return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in planes)


class Measures(NamedTuple):
    """Measures of an image.

    Args:
        extent: extent of the intensities.
        box: bounding box of the foreground, voxels.
        share_low, share_high: shares of the voxels in the box at or below the low end of their channel's window and at
            or above its high end; None if no channel has a window.
        warnings: lines by kind.
    """

    extent: Extent
    box: tuple[slice, ...]
    share_low: float | None
    share_high: float | None
    warnings: Warnings


def check_intensities(channels: Sequence[NDArray[Any]], nan_is_minimum: bool = False) -> list[str]:
    """Check that the voxels of a file are finite, and return their problems.

    Args:
        channels: intensities of each channel (X, Y, Z).
        nan_is_minimum: whether NaN is not a problem, as long as a channel has other voxels.
    """
    unknown, infinite = 0, 0
    for channel in channels:
        if channel.dtype.kind == "f" and not (finite := np.abs(channel) <= LARGEST_FLOAT32).all():
            missing = int(np.count_nonzero(np.isnan(channel)))
            infinite += int(np.count_nonzero(~finite)) - missing
            unknown += missing if not nan_is_minimum or missing == channel.size else 0
    problems = []
    if unknown and nan_is_minimum:
        problems.append("found a channel of nothing but NaN, expected intensities")
    elif unknown:
        expected = 'expected finite intensities, or "nan": "minimum" in the dataset\'s description'
        problems.append(f"found {count_of(unknown, 'NaN voxel')}, {expected}")
    if infinite:
        problems.append(f"found {count_of(infinite, 'infinite voxel')}, expected finite intensities (in float32)")
    return problems


def fill_nan(channel: NDArray[Any]) -> int:
    """Replace NaN in a channel, in place, by the minimum of its other voxels; return how many there were."""
    missing = np.isnan(channel)
    count = int(np.count_nonzero(missing))
    if count:
        channel[missing] = channel[~missing].min()
    return count


def measure_channels(channels: Sequence[NDArray[Any]], description: DatasetDescription) -> Measures:
    """Measure the channels (X, Y, Z) of an image; extent and box have their axis order."""
    extent = Extent.of(channels)
    box = extent.box(description.windows)
    warnings: Warnings = {}
    for name, channel, window in zip(description.channels, channels, description.windows, strict=True):
        for kind, line in _doubt(channel, box, window):
            warnings.setdefault(kind, []).append(f"channel {name}: {line}" if len(channels) > 1 else line)
    windowed = [
        (channel[box], window)
        for channel, window in zip(channels, description.windows, strict=True)
        if window is not None
    ]
    if not windowed:
        return Measures(extent, box, None, None, warnings)
    total = sum(inside.size for inside, _ in windowed)
    share_low = sum(np.count_nonzero(inside <= low) for inside, (low, _) in windowed) / total
    share_high = sum(np.count_nonzero(inside >= high) for inside, (_, high) in windowed) / total
    if share_low + share_high > MOST_SATURATED:
        warnings.pop("scale", None)  # it has the same cause
        warnings["saturated"] = [
            f"found {share_low:.0%} of the foreground box's voxels at or below the intensity window and "
            f"{share_high:.0%} at or above it ({_windows(description)}), expected most of them inside"
        ]
    return Measures(extent, box, float(share_low), float(share_high), warnings)


def _doubt(channel: NDArray[Any], box: tuple[slice, ...], window: Window | None) -> Iterator[tuple[str, str]]:
    """Yield kind and line of each doubt that a channel (X, Y, Z) holds what its rule expects."""
    least, most = channel.min(), channel.max()
    if least == most:
        yield "constant", f"found {most:g} in every voxel"
    elif values := _values_of_labels(channel):
        yield "few values", f"found only {values} different values, as in a label map"
    elif window is not None and (line := _describe_contrast(channel[box], window)):
        yield "contrast", line
    elif window is not None and window[0] < 0 <= least:  # a CT has air
        expected = f"expected negative ones, as in the window from {window[0]:g} to {window[1]:g}"
        yield "scale", f"found no intensity below {least:g}, {expected}"


def _values_of_labels(channel: NDArray[Any]) -> int:
    """Return the number of different values in a channel (X, Y, Z) if they are few, otherwise 0."""
    steps = [slice(None, None, max(1, side // SAMPLED_SIDE)) for side in channel.shape]
    if len(np.unique(channel[tuple(steps)])) > MOST_LABELS:  # spares sorting the voxels of ordinary images
        return 0
    values = len(np.unique(channel))
    return values if values <= MOST_LABELS else 0


def _describe_contrast(inside: NDArray[Any], window: Window) -> str:
    """Return a line if a window shows hardly any contrast, for instance of a CT that was scaled to 0..1."""
    low, high = window
    least, most = np.percentile(inside, (0.5, 99.5))  # a hot voxel is no contrast
    if most - least >= LEAST_CONTRAST * (high - low):
        return ""
    return f"found intensities from {least:g} to {most:g}, hardly any contrast in the window from {low:g} to {high:g}"


def _windows(description: DatasetDescription) -> str:
    ends = [f"{window[0]:g} to {window[1]:g}" for window in description.windows if window is not None]
    return ", ".join(end for end, _ in itertools.groupby(ends))

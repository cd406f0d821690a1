"""Checks and measures of an image's voxels."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.data.datasets import DatasetDescription, Window
from engine.runtime.warning_lines import Warnings

LARGEST_FLOAT32 = np.finfo(np.float32).max  # the pipelines compute in float32; no NaN compares below it
MOST_SATURATED = 0.5  # share of the voxels in the foreground box
LEAST_CONTRAST = 0.05  # range of an image as a share of its window's


class Measures(NamedTuple):
    """Measures of an image.

    Args:
        box: bounding box of the foreground, voxels.
        share_low, share_high: shares of the voxels in the box at or below the low end of their channel's window and at
            or above its high end; None if no channel has a window.
        warnings: lines by kind.
    """

    box: tuple[slice, ...]
    share_low: float | None
    share_high: float | None
    warnings: Warnings


def check_intensities(voxels: NDArray[Any], nan_is_minimum: bool = False) -> list[str]:
    """Check that the voxels of an image are finite, and return their problem, if any.

    Args:
        voxels: intensities, any shape.
        nan_is_minimum: whether NaN is not a problem.
    """
    if voxels.dtype.kind != "f" or (finite := np.abs(voxels) <= LARGEST_FLOAT32).all():
        return []
    wrong, kinds = (~finite & ~np.isnan(voxels), "infinite") if nan_is_minimum else (~finite, "NaN or infinite")
    count = np.count_nonzero(wrong)
    return [f"found {count} {kinds} voxels, expected finite intensities (in float32)"] if count else []


def fill_nan(channel: NDArray[Any]) -> int:
    """Replace NaN in a channel, in place, by its minimum, or by 0 if it has no number; return how many there were."""
    missing = np.isnan(channel)
    count = int(np.count_nonzero(missing))
    if count:
        channel[missing] = 0 if count == channel.size else channel[~missing].min()
    return count


def measure_channels(channels: Sequence[NDArray[Any]], description: DatasetDescription) -> Measures:
    """Measure the channels (X, Y, Z) of an image; the box has their axis order."""
    lows = [-np.inf if window is None else window[0] for window in description.windows]
    above = [channel > max(low, channel.min()) for channel, low in zip(channels, lows, strict=True)]
    box = _bounding_box(np.any(above, axis=0))
    warnings: Warnings = {}
    windowed = []
    for name, channel, window in zip(description.channels, channels, description.windows, strict=True):
        which = f" of channel {name}" if len(channels) > 1 else ""
        least, most = channel.min(), channel.max()
        if least == most:
            warnings.setdefault("constant", []).append(f"found {most:g} in every voxel{which}")
        elif window is not None and (line := _describe_contrast(channel[box], window)):
            warnings.setdefault("contrast", []).append(f"{line}{which}")
        elif window is not None and window[0] < 0 <= least:  # a CT has air
            expected = f"expected negative ones, as in the window from {window[0]:g} to {window[1]:g}"
            warnings.setdefault("scale", []).append(f"found no intensity below {least:g}{which}, {expected}")
        if window is not None:
            windowed.append((channel[box], window))
    if not windowed:
        return Measures(box, None, None, warnings)
    total = sum(inside.size for inside, _ in windowed)
    share_low = sum(np.count_nonzero(inside <= low) for inside, (low, _) in windowed) / total
    share_high = sum(np.count_nonzero(inside >= high) for inside, (_, high) in windowed) / total
    if share_low + share_high > MOST_SATURATED:
        warnings["saturated"] = [
            f"found {share_low:.0%} of the foreground box's voxels at or below the intensity window and "
            f"{share_high:.0%} at or above it ({_windows(description)}), expected most of them inside"
        ]
    return Measures(box, float(share_low), float(share_high), warnings)


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


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Find the smallest box that contains all True voxels; the whole volume if there are none."""
    if not mask.any():
        return tuple(slice(0, side) for side in mask.shape)
    places = (np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in places)

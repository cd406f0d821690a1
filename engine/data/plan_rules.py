"""The numbers of a plan: rules for spacing, intensity window and crop.

Spacing and window follow nnU-Net (Isensee et al., Nature Methods 18, 2021, and its supplement).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.data.datasets import Window
from engine.data.header_checks import format_size
from engine.runtime.errors import InputError
from engine.runtime.wording import count_of

AXES = ("R-L", "A-P", "I-S")
ANISOTROPIC = 3  # ratio of spacings, and of numbers of voxels, between the coarsest axis and the others
FINE_PERCENTILE = 10  # of the spacings along that axis
DIGITS = 3  # of a spacing, and of the range of a window
PERCENTILES = (0.5, 99.5)  # of the labelled voxels of a CT: the ends of its window
SIDE = 16  # REP3D's sides are multiples of it, at least one of them of twice it
CROPS = 2  # of a training step, by default
# Of a training step of REP3D in float32: its row in docs/networks.md less 0.5 GB for Python and its libraries, and the
# tensors that another class adds to the loss. In bf16 the tensors kept for the backward pass take about half.
WEIGHT_BYTES = 16 * 66e6  # weights, gradients and AdamW's two moments
VOXEL_BYTES, CLASS_BYTES = 5200, 24  # per voxel of a crop


def choose_spacing(
    shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]]
) -> tuple[tuple[float, float, float], str]:
    """Choose the voxel size that volumes are resampled to: the median along each axis, with three significant digits.

    Thick slices are the exception: if the coarsest axis has a median spacing over three times those of the others, and
    fewer than a third of their voxels, its voxel size is the tenth percentile, but not finer than along the others. So
    few cases lose slices.

    Args:
        shapes: voxels of each case along R-L, A-P and I-S.
        spacings: voxel size of each case along the same axes, mm.
    Returns: the voxel size, mm, and the reason.
    """
    known = np.array(spacings, np.float64)
    chosen, size = np.median(known, axis=0), np.median(shapes, axis=0)
    cases = count_of(len(known), "training case")
    least, most = (format_size([_round(side) for side in end(known, axis=0)]) for end in (np.min, np.max))
    reason = f"median of {cases}, from {least} to {most}" if least != most else f"that of {cases}"
    coarsest = int(chosen.argmax())
    others = [axis for axis in range(3) if axis != coarsest]
    coarse = chosen[coarsest] > ANISOTROPIC * chosen[others].max()
    if coarse and ANISOTROPIC * size[coarsest] < size[others].min():
        chosen[coarsest] = max(np.percentile(known[:, coarsest], FINE_PERCENTILE), chosen[others].max())
        reason += f"; along {AXES[coarsest]}, where slices are thick, the {FINE_PERCENTILE}th percentile"
    first, second, third = map(_round, chosen)
    return (first, second, third), reason


def _round(side: float) -> float:
    return float(f"{side:.{DIGITS}g}")


def choose_window(intensities: Sequence[NDArray[np.float32]], labelled: Sequence[int]) -> Window:
    """Choose the window of a CT: percentiles of the labelled voxels of all cases together.

    Its ends are rounded outwards to whole numbers or, if its range is small, to a hundredth of it.

    Args:
        intensities: of labelled voxels of each case, (voxels,).
        labelled: number of labelled voxels of each case, by which it counts, however many were drawn.
    Raises:
        InputError: no voxel is labelled, or both ends are the same.
    """
    values = np.concatenate(intensities).astype(np.float64)
    if not values.size:
        raise InputError("found no labelled voxel in any training case, expected some to choose a window by")
    drawn = [len(part) for part in intensities]
    weights = np.repeat(np.divide(labelled, np.maximum(drawn, 1)), drawn)
    low, high = np.quantile(values, np.divide(PERCENTILES, 100), weights=weights, method="inverted_cdf")
    if low == high:
        expected = 'expected contrast to choose a window by, or "intensity" in --dataset'
        raise InputError(f"found the intensity {low:g} in nearly all labelled voxels, {expected}")
    scale = 10.0 ** max(0, DIGITS - 1 - math.floor(math.log10(high - low)))
    return math.floor(low * scale) / scale, math.ceil(high * scale) / scale


def step_bytes(voxels: float, classes: int) -> float:
    """Estimate the memory of a training step of REP3D in float32, bytes.

    Args:
        voxels: voxels of a crop.
        classes: number of classes, background included.
    """
    return WEIGHT_BYTES + CROPS * voxels * (VOXEL_BYTES + CLASS_BYTES * classes)


def most_voxels(memory: float, classes: int) -> float:
    """Estimate how many voxels a crop may have.

    Args:
        memory: memory for a training step of REP3D, GB.
        classes: number of classes, background included.
    Raises:
        InputError: the smallest crop needs more memory.
    """
    if memory * 1e9 < (least := step_bytes(2 * SIDE**3, classes)):
        raise InputError(
            f"--memory: found {memory:g} GB, expected at least {least / 1e9:.3g} for REP3D's smallest crop"
        )
    return (memory * 1e9 - WEIGHT_BYTES) / (step_bytes(1, classes) - WEIGHT_BYTES)


def choose_crop(shape: Sequence[float], spacing: Sequence[float], most: float) -> tuple[int, int, int]:
    """Choose the crop whose shortest side in mm is the longest; among several, by the next longer side, and so on.

    A crop that fits is as close to a cube of the patient as the volume and the limit allow.

    Args:
        shape: voxels of a typical volume along R-L, A-P and I-S.
        spacing: voxel size, mm.
        most: limit of the crop's voxels.
    """
    longest = longest_sides(shape)
    crops = [
        (first, second, third)
        for first in range(SIDE, longest[0] + 1, SIDE)
        for second in range(SIDE, longest[1] + 1, SIDE)
        if (third := min(longest[2], int(most / (first * second)) // SIDE * SIDE)) >= SIDE
        if max(first, second, third) > SIDE
    ]
    return max(crops, key=lambda sides: sorted(np.multiply(sides, spacing)))


def longest_sides(shape: Sequence[float]) -> tuple[int, int, int]:
    """Return the sides of REP3D's crops that are closest to those of a volume (D, H, W).

    A crop is less than half of ``SIDE`` longer than the volume, which is padded, so that no thin volume is cut in two.
    """
    depth, height, width = (SIDE * max(1, math.ceil(side / SIDE - 0.5)) for side in shape)
    if max(depth, height, width) > SIDE:
        return depth, height, width
    longest = int(np.argmax(shape))
    depth, height, width = (2 * SIDE if axis == longest else SIDE for axis in range(3))
    return depth, height, width

"""Inversion of logits on the network's grid to a label map on the image's native grid, in little memory.

The label of a native voxel is the class with the largest trilinearly interpolated probability, as MONAI's inverse of
the pipeline followed by an argmax gives. If the two grids have the same axes (they do unless the image's affine is
sheared), interpolation is a product with one matrix per axis, computed here in small blocks.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor

PIPELINE = ["Orientation", "SpatialResample", "CropForeground"]  # operations that interpolation in blocks supports
BLOCK = 48  # voxels per side: one class fits into a core's cache, and the matrices stay small
MAX_SKEW = 0.01  # voxels of the network's grid over the extent of the volume; rounding of affines stays below it


@dataclass(frozen=True)
class Axis:
    """Axis of the network's grid, with the native voxels along it that are in the foreground crop.

    Args:
        native: index of the native axis that is parallel to it, in either direction.
        voxels: consecutive indices of these voxels.
        places: their coordinates, in voxels of the cropped grid.
    """

    native: int
    voxels: NDArray[np.integer]
    places: NDArray[np.floating]


@dataclass(frozen=True)
class Part:
    """Consecutive native voxels along an axis, and the voxels of the network's grid that they are interpolated from.

    Args:
        native: slice of the native axis.
        grid: slice of the network grid's axis.
        weights: interpolation weights (native voxels, grid voxels).
    """

    native: slice
    grid: slice
    weights: Tensor


def to_native_labels(logits: Tensor, image: MetaTensor, transforms: Compose) -> Tensor:
    """Compute the label map of an image on its native grid; voxels outside the foreground crop are background.

    Args:
        logits: logits on the grid of ``image``.
        image: input of the network, with the record of the operations that produced it.
        transforms: pipeline that produced the image.
    Shape: (classes, D, H, W) -> (X, Y, Z), uint8, on the CPU.
    Raises:
        FloatingPointError: the logits are not finite.
    """
    axes = shared_axes(image)
    if axes is None:
        return compare_classes(logits, image, transforms)
    return interpolate_blocks(logits, axes, image.applied_operations[0]["orig_size"]).cpu()


def shared_axes(image: MetaTensor) -> list[Axis] | None:
    """Match the axes of the image's grid with those of the native grid; None if they are not parallel.

    They are not if the native affine is sheared: stepping along a native axis then also moves along another axis of the
    grid, by more than ``MAX_SKEW`` voxels from one end of the volume to the other. None is also returned for pipelines
    with operations other than orientation, linear resampling and cropping.
    """
    operations = image.applied_operations
    if [operation["class"] for operation in operations] != PIPELINE:
        return None
    orientation, resampling, _ = operations
    if (resampling["extra_info"]["mode"], resampling["extra_info"]["padding_mode"]) != ("bilinear", "border"):
        return None
    shape = np.array(orientation["orig_size"])
    to_grid = np.linalg.solve(image.affine.numpy(), orientation["extra_info"]["original_affine"])
    steps = to_grid[:3, :3]
    natives = np.abs(steps).argmax(axis=1)
    skew = np.abs(steps) * (shape - 1)
    skew[range(3), natives] = 0
    if sorted(natives) != [0, 1, 2] or skew.max() > MAX_SKEW:
        return None

    axes = []
    for axis, native in enumerate(natives):
        size = image.shape[axis + 1]
        places = steps[axis, native] * np.arange(shape[native]) + to_grid[axis, 3]
        places = places.round(6)  # float64 rounding must not decide whether a voxel is on the edge of the crop
        (voxels,) = np.nonzero((places > -1) & (places < size))
        # Between the crop and the zeros around it all classes fade equally, and if the crop ends with the grid that it
        # was cut from, the last half voxel has the border's value: in both cases the border voxel decides.
        axes.append(Axis(int(native), voxels, places[voxels].clip(0, size - 1)))
    return axes


def split_axis(axis: Axis, device: torch.device) -> list[Part]:
    """Split an axis into parts of at most ``BLOCK`` voxels of the grid that is finer along it."""
    span = np.ptp(axis.places) if len(axis.places) > 1 else 0
    length = max(1, int(BLOCK * min(1, len(axis.places) / (span + 1))))
    parts = []
    for start in range(0, len(axis.places), length):
        voxels, places = axis.voxels[start : start + length], axis.places[start : start + length]
        grid = np.arange(np.floor(places.min()), np.ceil(places.max()) + 1)
        weights = (1 - np.abs(places[:, None] - grid)).clip(min=0)
        parts.append(
            Part(
                slice(int(voxels[0]), int(voxels[-1]) + 1),
                slice(int(grid[0]), int(grid[-1]) + 1),
                torch.from_numpy(weights).to(device, torch.float32),
            )
        )
    return parts


def interpolate_blocks(logits: Tensor, axes: Sequence[Axis], shape: Sequence[int]) -> Tensor:
    """Compute labels on the native grid, block by block.

    Only classes that can win in a block are interpolated in it: the probabilities of a voxel sum to one, and so do
    interpolated ones, so the winner has a probability of at least 1 / classes in one of the block's voxels.

    Args:
        logits: logits on the cropped grid.
        axes: axes of that grid.
        shape: shape of the native grid.
    Shape: (classes, D, H, W) -> (X, Y, Z), uint8, on the logits' device.
    """
    labels = torch.zeros(tuple(shape), dtype=torch.uint8, device=logits.device)
    turned = labels.permute([axis.native for axis in axes])
    least = 0.999 / len(logits)  # rounded probabilities need not sum to one
    for x, y, z in product(*(split_axis(axis, logits.device) for axis in axes)):
        probabilities = logits[:, x.grid, y.grid, z.grid].softmax(dim=0)
        (classes,) = (probabilities.amax(dim=(1, 2, 3)) >= least).nonzero(as_tuple=True)
        require_finite_logits(len(classes) > 0)
        block = turned[x.native, y.native, z.native]
        if len(classes) == 1:
            block[:] = classes
            continue
        interpolated = interpolate(probabilities[classes], x, y, z)
        block[:] = classes[interpolated.max(dim=0).indices]  # the first of equal ones
    return labels


def interpolate(block: Tensor, x: Part, y: Part, z: Part) -> Tensor:
    """Interpolate a block of the network's grid at native voxels, (classes, d, h, w) -> (classes, X, Y, Z)."""
    # (classes, d, h, w) -> (classes, d, h, Z) -> (classes, d, Y, Z) -> (classes, X, Y, Z)
    interpolated = y.weights @ (block @ z.weights.T)
    return (x.weights @ interpolated.flatten(2)).unflatten(2, interpolated.shape[2:])


def compare_classes(logits: Tensor, image: MetaTensor, transforms: Compose) -> Tensor:
    """Compute labels by MONAI's inverse of the pipeline, for any geometry, comparing one class after the other.

    Args, Shape, Raises: as ``to_native_labels``.
    """
    best = torch.empty(0)
    labels = torch.empty(0, dtype=torch.uint8)
    for value, volume in enumerate(class_probabilities(logits)):
        probability = to_native(volume, image, transforms)
        if value == 0:
            best, labels = probability, torch.zeros_like(probability, dtype=torch.uint8)
        else:
            labels[probability > best] = value
            best = torch.maximum(best, probability)
    return labels


def class_probabilities(logits: Tensor) -> Iterator[Tensor]:
    """Yield the probability of one class after the other, (classes, D, H, W) -> (D, H, W) per class.

    Raises:
        FloatingPointError: the logits are not finite.
    """
    normaliser = torch.cat([slab.logsumexp(dim=0) for slab in logits.split(BLOCK, dim=1)])
    require_finite_logits(bool(normaliser.isfinite().all()))
    for logit in logits:
        yield (logit - normaliser).exp()


def to_native(volume: Tensor, image: MetaTensor, transforms: Compose) -> Tensor:
    """Invert the pipeline for a volume on the image's grid, (D, H, W) -> (X, Y, Z) on the native grid."""
    operations = deepcopy(image.applied_operations)  # the inverse removes them
    placed = MetaTensor(volume[None].cpu(), meta=image.meta, applied_operations=operations)
    return transforms.inverse({"image": placed})["image"][0].as_subclass(Tensor)


def require_finite_logits(finite: bool) -> None:
    """Raise FloatingPointError if the network's output is not finite."""
    if not finite:
        raise FloatingPointError("found logits that are not finite, expected finite ones")

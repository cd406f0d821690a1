"""Effective receptive field: how much each input voxel contributes to one output voxel, and where the mass lies.

Source: Ding et al., "Scaling Up Your Kernels to 31x31", CVPR 2022, with its published script, extended to 3D. There are
two differences. Boxes are centred on the observed voxel, not on the crop: with a stride of 16 the two are 8 voxels
apart, which is little in 1024 pixels and much in a crop of 96. And boxes hold a share of the contributions themselves,
not of their logarithm, so that the scale of the gradient does not matter.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features = Callable[[Tensor], Tensor]  # network or part of one: (N, C, D, H, W) -> (N, F, d, h, w)


class Box(NamedTuple):
    """Cube around the observed voxel, cut off at the borders of the crop.

    Args:
        side: side of the cube before it is cut off, voxels.
        volume: share of the crop's voxels that lie in it.
    """

    side: int
    volume: float


@dataclass(frozen=True)
class ReceptiveField:
    """Effective receptive field of an output voxel.

    Args:
        contributions: mean contribution map of the images, (D, H, W).
        centre: input voxel at the centre of the observed voxel.
        images: number of images.
    """

    contributions: NDArray[np.float64]
    centre: tuple[int, ...]
    images: int


def measure_field(extract: Features, images: Iterable[Tensor], strides: Sequence[int]) -> ReceptiveField:
    """Average the contribution maps of images that may be too many for one batch.

    Args:
        extract: network or part of one, in evaluation mode.
        images: preprocessed crops of one size.
        strides: input voxels per output voxel along each axis.
    Shape: images (1, C, D, H, W) each.
    """
    maps = [contribution_map(extract, image) for image in images]
    contributions = np.mean(maps, axis=0)
    return ReceptiveField(contributions, observed_position(contributions.shape, strides), len(maps))


def contribution_map(extract: Features, images: Tensor) -> NDArray[np.float64]:
    """Compute the positive gradient of the observed voxel with respect to the input.

    The observed voxel is the central one of the extracted features, after a ReLU and summed over their channels. The
    positive part of its gradient is summed over the input's channels and averaged over the images.

    Args:
        extract: network or part of one, in evaluation mode.
        images: preprocessed crops.
    Shape: images (N, C, D, H, W) -> (D, H, W).
    """
    images = images.detach().clone().requires_grad_()
    features = extract(images)
    depth, height, width = (side // 2 for side in features.shape[2:])
    observed = features[:, :, depth, height, width].relu().sum()
    (gradient,) = torch.autograd.grad(observed, images)
    return gradient.relu().sum(dim=1).mean(dim=0).cpu().double().numpy()  # (N, C, D, H, W) -> (D, H, W)


def observed_position(size: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Find the input voxel at the centre of the observed voxel; of two, the lower one.

    Args:
        size: (D, H, W) of the input, voxels.
        strides: input voxels per output voxel along each axis.
    """
    pairs = zip(size, strides, strict=True)
    return tuple(side // stride // 2 * stride + (stride - 1) // 2 for side, stride in pairs)


def smallest_box(contributions: NDArray[np.float64], centre: Sequence[int], share: float) -> Box:
    """Find the smallest cube around a voxel that holds a share of the contributions.

    Args:
        contributions: contribution map.
        centre: voxel at the centre of the cube.
        share: share of the total mass, above 0 and at most 1.
    Shape: contributions (D, H, W).
    Raises:
        ValueError: the total mass is zero or not finite.
    """
    if not 0 < contributions.sum() < np.inf:
        raise ValueError(f"contributions: found a sum of {contributions.sum()}, expected a finite positive number")
    offsets = [np.abs(np.arange(side) - middle) for side, middle in zip(contributions.shape, centre, strict=True)]
    distances = np.maximum.reduce(np.meshgrid(*offsets, indexing="ij"))  # a cube is a ball of the maximum norm
    mass = np.bincount(distances.ravel(), weights=contributions.ravel()).cumsum()
    radius = int(np.searchsorted(mass, share * mass[-1]))
    return Box(2 * radius + 1, float((distances <= radius).mean()))

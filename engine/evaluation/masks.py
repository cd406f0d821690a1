"""Numbers that describe the masks of a network: size of the correction, smallest value, profile over the distance."""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from networks.Rep3D.lrbm import LRBM, compute_distances
from networks.Rep3D.rep3d_encoder import MaskedKernelBlock


def find_masks(network: nn.Module) -> dict[str, LRBM]:
    """Find the masks of a network by the names of their blocks."""
    return {name.removesuffix(".lrbm"): module for name, module in network.named_modules() if isinstance(module, LRBM)}


def find_blocks(network: nn.Module) -> dict[str, MaskedKernelBlock]:
    """Find the blocks with large kernels of a network by name, with and without masks."""
    return {name: module for name, module in network.named_modules() if isinstance(module, MaskedKernelBlock)}


def compute_masks(network: nn.Module) -> dict[str, NDArray[np.floating]]:
    """Compute the mask M of each block by the block's name, (maps, 1, K, K, K)."""
    return {name: lrbm().detach().cpu().numpy() for name, lrbm in find_masks(network).items()}


def mask_scalars(network: nn.Module) -> dict[str, float]:
    """Summarise the learned masks of a network by two numbers each, for a log.

    Returns: by name, "<block>/correction", the mean of |M - P| / P over the taps, P being the prior at the start, and
    "<block>/smallest", the smallest value of M.
    """
    scalars = {}
    for name, lrbm in find_masks(network).items():
        if list(lrbm.parameters()):
            mask, prior = lrbm().detach(), lrbm.prior
            scalars[f"{name}/correction"] = ((mask - prior).abs() / prior).mean().item()
            scalars[f"{name}/smallest"] = mask.min().item()
    return scalars


def radial_profile(values: NDArray[np.floating], where: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Average a cube of taps over the shells of equal distance from its centre, rounded to whole voxels.

    Args:
        values: value of each tap.
        where: taps that count; None for all. A shell without any is NaN.
    Shape: (K, K, K), (K, K, K) -> (shells,); shell i holds the taps at a distance of i - 0.5 to i + 0.5 voxels, the
        last one those of the corners.
    """
    shells = np.rint(compute_distances(values.shape[0]).numpy()).astype(int).ravel()
    counted = np.ones(values.size, bool) if where is None else where.ravel()
    with np.errstate(invalid="ignore"):
        return np.bincount(shells, np.where(counted, values.ravel(), 0)) / np.bincount(shells, counted)

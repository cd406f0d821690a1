"""Numbers that describe the masks of a network: size of the correction, smallest value, profile over the distance."""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from networks.Rep3D.lrbm import LRBM, compute_distances


def find_masks(network: nn.Module) -> dict[str, LRBM]:
    """Find the masks of a network by the names of their blocks."""
    return {name.removesuffix(".lrbm"): module for name, module in network.named_modules() if isinstance(module, LRBM)}


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
        if any(True for _ in lrbm.parameters()):
            mask, prior = lrbm().detach(), lrbm.prior
            scalars[f"{name}/correction"] = ((mask - prior).abs() / prior).mean().item()
            scalars[f"{name}/smallest"] = mask.min().item()
    return scalars


def radial_profile(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Average a cube of taps over the shells of equal distance from its centre, rounded to whole voxels.

    Shape: (K, K, K) -> (shells,); shell i holds the taps at a distance of i - 0.5 to i + 0.5 voxels, the last shell
    those of the corners.
    """
    shells = np.rint(compute_distances(values.shape[0]).numpy()).astype(int).ravel()
    return np.bincount(shells, weights=values.ravel().astype(np.float64)) / np.bincount(shells)

"""Smallest input at which every parameter of a network gets a gradient, derived from its ``input_sizes``."""

import functools

import torch

from networks import NETWORKS, build_network

# Arguments by class: few channels and blocks, but all kinds of operations.
LARGE_KERNELS = {"depths": (1, 1, 1, 1), "feat_size": (4, 8, 12, 16)}
NARROW = {
    "REP3D": LARGE_KERNELS,
    "UXNET": LARGE_KERNELS,
    "REPUXNET": LARGE_KERNELS,
    "REPOPT": LARGE_KERNELS,
    "SwinUNETR": {"feature_size": 12, "depths": (2, 1, 1, 1), "window_size": 3},
    "UNETR": {"feature_size": 4, "hidden_size": 48, "mlp_dim": 64},
    "UNet3D": {"channels": (4, 8, 12, 16, 20)},
    "nnUNet": {"filters": (4, 8, 12, 16, 20, 24)},
    "MedNeXt": {"channels": 4},
    "ResEncUNet": {"n_blocks": (1, 2, 1, 1, 1, 1), "feat_size": (4, 8, 12, 16, 20, 24)},
    "nnFormer": {"embed_dim": 48},
    "TransBTS": {"base_channels": 8, "embed_dim": 64, "num_layers": 1, "mlp_dim": 64},
    "UNesT": {"embed_dim": (32, 64, 128), "depths": (1, 1, 2)},
    "STUNet": {"feat_size": (4, 8, 12, 16, 20, 24)},
}


@functools.cache
def smallest_input(name):
    """Return the size (D, H, W), voxels."""
    with torch.device("meta"):
        sizes = build_network(name, 1, 3).input_sizes
    if sizes.least_coarse == 1:
        # Attention among one token gives its queries no gradient, and windows may be as narrow as the grid.
        return tuple(2 * divisor for divisor in sizes.divisors)
    return sizes.smallest


def build_smallest(name, in_chans=1, out_chans=3, **arguments):
    """Build the network for its smallest input."""
    return build_network(name, in_chans, out_chans, smallest_input(name), **arguments)


def build_narrow(name, **arguments):
    """Build the network for its smallest input, and small itself if ``NARROW`` has its class."""
    path, _ = NETWORKS[name]
    return build_smallest(name, **NARROW.get(path.partition(":")[2], {}), **arguments)

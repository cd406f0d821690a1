"""Smallest input at which every parameter of a network gets a gradient, derived from its ``input_sizes``."""

import functools

import torch

from networks import build_network


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

"""The smallest input at which nothing of a network is idle, whatever network it is."""

import functools

import torch

from networks import build_network


@functools.cache
def smallest_input(name):
    """(D, H, W), voxels."""
    with torch.device("meta"):
        sizes = build_network(name, 1, 3).input_sizes
    if sizes.least_coarse == 1:
        # Attention among one token leaves nothing for its queries to learn, and windows may be as narrow as the grid.
        return tuple(2 * divisor for divisor in sizes.divisors)
    return sizes.smallest


def build_smallest(name, in_chans=1, out_chans=3, **arguments):
    """The network for its smallest input."""
    return build_network(name, in_chans, out_chans, smallest_input(name), **arguments)

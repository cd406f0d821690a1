"""Largest connected component of a structure in a label map."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engine.runtime.errors import InputError

NEIGHBOURS = np.ones((3, 3, 3), np.uint8)  # 26: voxels that share a face, an edge or a corner


def find_structures(names: Sequence[str], structures: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the classes of which the structures of ``--keep_largest`` consist.

    Args:
        names: classes or regions.
        structures: indices of the classes of each structure of the dataset, by name.
    Raises:
        InputError: a name is unknown.
    """
    for name in names:
        if name not in structures:
            raise InputError(f"--keep_largest: found {name!r}, expected some of {', '.join(structures)}")
    return [structures[name] for name in names]


def keep_largest(labels: NDArray[np.uint8], structures: Sequence[Sequence[int]]) -> None:
    """Set to background what is not in the largest connected component of each structure, in place.

    Voxels are counted, and connected through faces, edges and corners. Of equally large components the first in the
    array's order is kept. The structures are processed in their order, so that a later one sees what the former ones
    have left.

    Args:
        labels: label map of class indices (X, Y, Z).
        structures: indices of the classes of which each structure consists.
    """
    for members in structures:
        whole = np.isin(labels, members)
        for box in ndimage.find_objects(whole.view(np.uint8)):  # one, or none without such voxels
            components, count = ndimage.label(whole[box], NEIGHBOURS)
            if count > 1:
                sizes = np.bincount(components.ravel())
                largest = 1 + sizes[1:].argmax()
                labels[box][whole[box] & (components != largest)] = 0

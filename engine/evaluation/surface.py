"""Distances between the surfaces of two masks: HD95 and the normalised surface Dice.

Sources: Hausdorff distance, its 95th percentile, and normalised surface Dice: Nikolov et al., "Deep learning to achieve
clinically applicable segmentation of head and neck anatomy for radiotherapy", 2018 (arXiv:1809.04430). Both are
MONAI's; its surface Dice weights elements of the surface by their area, as in the authors' code, only with
``use_subvoxels``.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage

Box = tuple[slice, ...]
PERCENTILE = 95


class SurfaceScores(NamedTuple):
    """Scores of a pair of surfaces.

    Args:
        hd95: 95th percentile of the Hausdorff distance, mm.
        nsd: normalised surface Dice.
    """

    hd95: float
    nsd: float


def compare_surfaces(
    prediction: NDArray[np.bool_], label: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> SurfaceScores:
    """Compare the surfaces of two masks, neither of which is empty.

    HD95: the distances from the voxels on the surface of one mask, those with a face towards its outside or the border
    of the volume, to the nearest of the other mask; of the 95th percentiles of both directions the larger one.
    NSD: the share of both surfaces by area whose distance from the other one is at most the tolerance.

    Args:
        prediction, label: the masks, cut to any box that holds both.
        spacing: voxel size along the axes of the masks, mm.
        tolerance: of the NSD, mm.
    Shape: (X, Y, Z) each.
    """
    found, true = (torch.from_numpy(mask)[None, None] for mask in (prediction, label))  # (X, Y, Z) -> (N, C, X, Y, Z)
    sides = list(map(float, spacing))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)  # MONAI's own call
        hd95 = compute_hausdorff_distance(found, true, True, percentile=PERCENTILE, spacing=sides)
        nsd = compute_surface_dice(found, true, [tolerance], True, spacing=sides, use_subvoxels=True)
    return SurfaceScores(hd95.item(), nsd.item())


def find_boxes(volume: NDArray[np.uint8], classes: int) -> list[Box | None]:
    """Find the bounding box of each foreground class of a label map; None for a class without voxels.

    Args:
        volume: label map of class indices (X, Y, Z).
        classes: number of classes, the background included.
    """
    return ndimage.find_objects(volume, max_label=classes - 1)


def join_boxes(boxes: Sequence[Box | None]) -> Box:
    """Return the smallest box that holds all boxes, at least one of which is not None."""
    known = [box for box in boxes if box is not None]
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*known, strict=True)
    )

"""What a plan needs of a case's voxels: intensities of its labelled voxels, and the extent of all intensities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.intensity_checks import Extent
from engine.data.labels import IGNORED_INDEX

SAMPLED_VOXELS = 50_000  # of a case, so that a thousand cases take 200 MB per channel
SEED = 0


@dataclass(frozen=True)
class Foreground:
    """Labelled voxels of a case.

    Args:
        labelled: number of labelled voxels; ignored ones do not count.
        intensities: of the labelled voxels, or of ``SAMPLED_VOXELS`` drawn from more, (channels, voxels), float32.
        extent: extent of the intensities of all voxels, along R-L, A-P and I-S.
    """

    labelled: int
    intensities: NDArray[np.float32]
    extent: Extent


def sample_foreground(
    channels: Sequence[NDArray[Any]], classes: NDArray[np.uint8] | None, extent: Extent
) -> Foreground:
    """Draw from the labelled voxels of a case without replacement, the same ones each time.

    Args:
        channels: intensities of each channel (X, Y, Z).
        classes: class indices (X, Y, Z), if the case has a label.
        extent: extent of the intensities.
    """
    places = np.flatnonzero((classes != 0) & (classes != IGNORED_INDEX)) if classes is not None else np.array([], int)
    drawn = places
    if len(places) > SAMPLED_VOXELS:
        drawn = np.random.default_rng(SEED).choice(places, SAMPLED_VOXELS, replace=False, shuffle=False)
    found = np.unravel_index(drawn, channels[0].shape)
    return Foreground(len(places), np.array([channel[found] for channel in channels], np.float32), extent)

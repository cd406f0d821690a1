"""The synthetic CT that the benchmarks of loading and prediction read."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import zoom

SPACING = (0.8, 0.8, 2.5)  # mm
ORGANS = 8


def write_ct(path: Path, shape: Sequence[int], seed: int | Sequence[int], label_path: Path | None = None) -> None:
    """Write a CT (int16): smooth soft tissue with some noise in an elliptic body, surrounded by air.

    Args:
        path: file of the image.
        shape: (X, Y, Z) in voxels.
        seed: random seed.
        label_path: file of a label map of ellipsoids, if one is needed. They do not show in the image, since the
            benchmarks measure speed.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.normal(scale=120, size=[max(2, side // 32) for side in shape]).astype(np.float32)
    voxels = zoom(coarse, [side / small for side, small in zip(shape, coarse.shape, strict=True)], order=1)
    voxels += rng.normal(50, 5, voxels.shape).astype(np.float32)
    across, along = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape[:2])
    voxels[(across[:, None] / 0.9) ** 2 + (along / 0.75) ** 2 > 1] = -1000
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])  # as scanners write them: left, posterior, superior
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), path)
    if label_path is not None:
        labels = np.zeros(shape, np.uint8)
        for organ in range(1, ORGANS + 1):
            labels[ellipsoid(shape, rng.uniform(-0.4, 0.4, 3), rng.uniform(0.08, 0.25, 3))] = organ
        nib.save(nib.Nifti1Image(labels, affine), label_path)


def ellipsoid(shape: Sequence[int], centre: Iterable[float], radii: Iterable[float]) -> np.ndarray:
    """Compute the mask (X, Y, Z) of an ellipsoid in a volume that extends from -1 to 1 along each axis."""
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, side)) for side in shape)]
    terms = [((axis - c) / r).astype(np.float32) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)]
    return terms[0] + terms[1] + terms[2] < 1

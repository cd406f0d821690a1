"""Augmentation beyond the paper's (``--augmentation strong``): nnU-Net's choice, from MONAI's transforms.

Ranges and probabilities are those of nnU-Net 2.8 (``nnUNetTrainer.get_training_transforms``), where intensities are
z-scored. Differences:

- No mirroring, which ``--mirror`` adds.
- Elastic deformation, which nnU-Net 2 leaves out; probability and smoothness are those of version 1.
- nnU-Net rotates and scales a larger crop. Here the crop is reflected at its faces, as in the paper's augmentation.
- Labels are resampled to the nearest voxel, not interpolated per class; flat crops are not augmented in two dimensions.
- Noise has its own strength in every channel; gamma is uniform from 0.7 to 1.5, not half of the time below 1.
- The paper's random shift of intensities stays, for each channel by itself.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from monai.transforms import (
    AffineGrid,
    MapTransform,
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    Randomizable,
    RandomizableTransform,
    RandScaleIntensityFixedMean,
    RandShiftIntensity,
    RandSimulateLowResolution,
    Resample,
    Transform,
)
from monai.transforms.utils import create_grid
from torch import Tensor

from engine.data.augmentation import reflect

NODE_SPACING = 4  # voxels between the displacements that are drawn; a fraction of the smoothing's standard deviation
SMOOTHING_REACH = 4  # standard deviations that MONAI's smoothing reaches


def strong_augmentation(keys: Sequence[str]) -> list[Transform]:
    """List the transforms of a crop, with "image" (channels, D, H, W) among its ``keys``."""
    sigma = (0.5, 1.0)  # voxels
    return [
        RandRotateScaleDeformd(keys, 0.2, angle=math.pi / 6, scale=(0.7, 1.4), sigma=(9.0, 13.0), displacement=0.5),
        RandChannelsd(RandGaussianNoise(1.0, std=0.1), prob=0.1),
        RandChannelsd(RandSmooth(sigma, sigma, sigma, prob=0.5), prob=0.2),
        RandChannelsd(RandScaleIntensityFixedMean(1.0, factors=0.25, fixed_mean=False), prob=0.15),  # brightness
        RandChannelsd(RandScaleIntensityFixedMean(1.0, factors=0.25, preserve_range=True), prob=0.15),  # contrast
        RandChannelsd(RandSimulateLowResolution(0.5, "nearest-exact", zoom_range=(0.5, 1.0)), prob=0.25),
        RandChannelsd(RandAdjustContrast(1.0, (0.7, 1.5), invert_image=True, retain_stats=True), prob=0.1),
        RandChannelsd(RandAdjustContrast(1.0, (0.7, 1.5), retain_stats=True), prob=0.3),
        RandChannelsd(RandShiftIntensity(offsets=0.10, prob=1.0), prob=0.5),
    ]


class RandChannelsd(RandomizableTransform, MapTransform):
    """Apply a random transform to some images, to each of their channels with random numbers of its own.

    Args:
        transform: random transform of an array (1, D, H, W).
        prob: share of the images.
    """

    def __init__(self, transform: Randomizable, prob: float) -> None:
        MapTransform.__init__(self, "image")
        RandomizableTransform.__init__(self, prob)
        self.transform: Any = transform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Self:
        super().set_random_state(seed, state)
        # The same stream: with the same seed, as in MONAI's dictionary transforms, a channel's draw would repeat ours.
        self.transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        self.randomize(None)
        if not self._do_transform:
            return data
        channels = [self.transform(channel[None]) for channel in data["image"].as_subclass(Tensor)]
        return {**data, "image": torch.cat([channel.as_subclass(Tensor) for channel in channels])}


class RandSmooth(RandGaussianSmooth):
    """MONAI's random smoothing, with the outermost voxels repeated outside the crop, where MONAI assumes 0."""

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        margin = math.ceil(SMOOTHING_REACH * max(self.sigma_x[1], self.sigma_y[1], self.sigma_z[1]))
        inside = slice(margin, -margin)
        padded = F.pad(img[None], 6 * (margin,), mode="replicate")[0]
        return super().__call__(padded, randomize)[:, inside, inside, inside]


class RandRotateScaleDeformd(Randomizable, MapTransform):
    """Rotate, scale and deform crops at random, all in one resampling; a crop may get any of the three, or none.

    MONAI's Rand3DElasticd does all or none, and smooths displacements drawn for every voxel, which takes 2 s for a crop
    of 96 x 96 x 96. Here they are drawn for every ``NODE_SPACING``-th voxel, smoothed and then interpolated.

    Args:
        keys: entries (channels, D, H, W) to resample; the image linearly, any other to the nearest voxel.
        prob: probability of each of the three.
        angle: largest rotation about each axis in either direction, radians.
        scale: smallest and largest factor of all coordinates; above 1 structures become smaller.
        sigma: smallest and largest standard deviation of the smoothing of the deformation, voxels.
        displacement: largest displacement along an axis, relative to this standard deviation; up to 0.5 a deformation
            does not fold.
    """

    def __init__(
        self,
        keys: Sequence[str],
        prob: float,
        angle: float,
        scale: tuple[float, float],
        sigma: tuple[float, float],
        displacement: float,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.prob, self.angle, self.scale, self.sigma, self.displacement = prob, angle, scale, sigma, displacement
        self.resample = Resample(padding_mode="border", dtype=np.float32)  # only rounding leaves the reflected crop

    def randomize(self, shape: Sequence[int]) -> None:
        """Draw angles, factor and displacements (3, D, H, W) for a crop (D, H, W); None for what is left out."""
        rotated, scaled, deformed = self.R.random(3) < self.prob
        self.angles = self.R.uniform(-self.angle, self.angle, 3).tolist() if rotated else None
        self.factor = self.R.uniform(*self.scale) if scaled else None
        self.displacements = self._draw_displacements(shape) if deformed else None

    def _draw_displacements(self, shape: Sequence[int]) -> Tensor:
        sigma = self.R.uniform(*self.sigma)
        largest = self.R.uniform(0, self.displacement * sigma)
        nodes = [math.ceil(side / NODE_SPACING) + 1 for side in shape]
        noise = torch.from_numpy(self.R.uniform(-1, 1, (1, 3, *nodes)).astype(np.float32))
        smooth = GaussianFilter(3, sigma / NODE_SPACING)(noise)
        return F.interpolate(smooth * (largest / smooth.abs().max()), list(shape), mode="trilinear")[0]

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        shape = data[str(self.keys[0])].shape[1:]
        self.randomize(shape)
        if self.angles is None and self.factor is None and self.displacements is None:
            return data
        grid = self._make_grid(shape)
        moved = dict(data)
        for key in map(str, self.keys):
            # A crop is a view, which takes longer to sample.
            volume = data[key].as_subclass(Tensor).contiguous()
            mode = "bilinear" if key == "image" else "nearest"
            moved[key] = self.resample(volume, grid, mode=mode).as_subclass(Tensor).to(volume.dtype)
        return moved

    def _make_grid(self, shape: Sequence[int]) -> Tensor:
        """Compute the voxels to sample, relative to the centre and reflected at the faces, (3, D, H, W)."""
        grid = torch.as_tensor(create_grid(shape, dtype=np.float32, backend="torch"))
        if self.displacements is not None:
            grid[:3] += self.displacements
        if self.angles is not None or self.factor is not None:
            factors = None if self.factor is None else [self.factor] * 3
            affine = AffineGrid(rotate_params=self.angles, scale_params=factors, dtype=np.float32)
            grid = torch.as_tensor(affine(grid=grid)[0]).as_subclass(Tensor)
        return torch.stack([reflect(along, side) - (side - 1) / 2 for along, side in zip(grid, shape, strict=False)])

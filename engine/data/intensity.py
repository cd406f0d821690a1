"""Scaling of intensities, each channel by its own rule, and the foreground by intensity."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.transforms import MapTransform, NormalizeIntensity, ScaleIntensityRange, Transform
from torch import Tensor

from engine.data.datasets import Window


class ScaleChannelsd(MapTransform):
    """Scale each channel by MONAI's ScaleIntensityRange, if it has a window, or NormalizeIntensity.

    Args:
        keys: entries (channels, D, H, W), float32; they are changed in place.
        windows: for each channel the intensities that become 0 and 1, the rest clipped; None for the z-score.
    """

    VERSION = 1

    def __init__(self, keys: Sequence[str], windows: Sequence[Window | None]) -> None:
        super().__init__(keys)
        self.rules = list(map(_make_rule, windows))

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        for key in self.keys:
            for channel, rule in zip(data[str(key)], self.rules, strict=True):
                channel.copy_(rule(channel))
        return data


def _make_rule(window: Window | None) -> Transform:
    if window is None:
        return NormalizeIntensity()
    low, high = window
    return ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)


class AboveMinimum:
    """Foreground of an image (channels, D, H, W): voxels above their channel's minimum, or all if there are none."""

    VERSION = 1

    def __call__(self, image: Tensor) -> Tensor:
        above = image > image.amin(dim=(1, 2, 3), keepdim=True)
        return above if above.any() else torch.ones_like(image)

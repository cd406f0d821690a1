"""Random crops around foreground and background voxels, drawn without scanning the volume."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform, RandCropByPosNegLabeld, SpatialPad, Transform
from torch import Tensor

from engine.data.labels import IGNORED_INDEX

FOREGROUND, BACKGROUND = "foreground_counts", "background_counts"


class PadToSized(MapTransform):
    """Pad volumes smaller than the crop on both sides: image channels with their minimum, labels with background.

    Args:
        keys: entries (channels, D, H, W) to pad.
        size: minimum (D, H, W) afterwards, voxels.
    """

    VERSION = 1

    def __init__(self, keys: Sequence[str], size: Sequence[int]) -> None:
        super().__init__(keys)
        self.size = size

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, **{str(key): self._pad(str(key), data[str(key)]) for key in self.keys}}

    def _pad(self, key: str, volume: Tensor) -> Tensor:
        if all(side >= least for side, least in zip(volume.shape[1:], self.size, strict=True)):
            return volume
        if key != "image":
            return SpatialPad(self.size, value=0)(volume)
        return torch.cat([SpatialPad(self.size, value=float(channel.min()))(channel[None]) for channel in volume])


class CountCandidatesd(Transform):
    """Count the candidate centres of crops per row, from which any of them is found later by reading a single row.

    A row is a line of voxels along the last axis. Adds "foreground_counts" and "background_counts": the number of
    candidates up to and including each row, rows in C order. Ignored voxels are no candidates.

    Args:
        image_key: entry that defines the background: the unlabelled voxels above 0 in any of its channels. With None
            the background is every voxel, labelled or not, as in MONAI for a uint8 label. Every voxel of a case without
            any candidate is background.
    Shape: label (1, D, H, W), image (channels, D, H, W) -> counts (D * H,), int64.
    """

    VERSION = 2

    def __init__(self, image_key: str | None) -> None:
        self.image_key = image_key

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        foreground, background = self.masks(data["label"], None if self.image_key is None else data[self.image_key])
        if not (foreground.any() or background.any()):
            background = torch.ones_like(background)
        counts = (mask.sum(dim=-1).flatten().cumsum(dim=0) for mask in (foreground, background))
        return {**data, **dict(zip((FOREGROUND, BACKGROUND), counts, strict=True))}

    @staticmethod
    def masks(label: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return foreground and background masks (...) of a label (1, ...) and an image (channels, ...)."""
        classes = label.as_subclass(Tensor)[0]
        known = classes != IGNORED_INDEX
        foreground = known & (classes != 0)
        if image is None:
            return foreground, known
        return foreground, (image.as_subclass(Tensor) > 0).any(dim=0) & known & ~foreground


class Candidates:
    """Lazy sequence of the flat indices of a mask's voxels in C order, as ``nonzero`` lists them.

    Args:
        counts: number of the mask's voxels up to and including each row, (rows,).
        width: voxels per row.
        read_row: function that returns the mask of one row, (width,).
    """

    def __init__(self, counts: Tensor, width: int, read_row: Callable[[int], Tensor]) -> None:
        self.counts, self.width, self.read_row = counts, width, read_row

    def __len__(self) -> int:
        return int(self.counts[-1])

    def __getitem__(self, number: int) -> int:
        row = int(torch.searchsorted(self.counts, int(number), right=True))
        before = int(self.counts[row - 1]) if row else 0
        return row * self.width + int(self.read_row(row).nonzero()[number - before])


class RandCropByCountsd(RandCropByPosNegLabeld):
    """MONAI's random crops, identical for the same seed, with centres found from the counts of ``CountCandidatesd``.

    Args:
        keys: entries (channels, D, H, W) to crop.
        size: (D, H, W) of a crop, voxels.
        samples: crops per case; each is centred on foreground or background with equal probability.
        image_key: ``image_key`` of ``CountCandidatesd``.
    """

    def __init__(self, keys: Sequence[str], size: Sequence[int], samples: int, image_key: str | None) -> None:
        super().__init__(keys, "label", size, num_samples=samples, image_key=image_key)
        self.fg_indices_key, self.bg_indices_key = FOREGROUND, BACKGROUND

    def randomize(
        self, label: Any = None, fg_indices: Any = None, bg_indices: Any = None, image: Tensor | None = None
    ) -> None:
        height, width = label.shape[2:]
        everywhere = bool(bg_indices[-1] == label.numel())  # whatever the values of image and label

        def read_row(row: int) -> tuple[Tensor, Tensor]:
            plane, line = divmod(row, height)
            of_image = None if image is None else image[:, plane, line]
            foreground, background = CountCandidatesd.masks(label[:, plane, line], of_image)
            return foreground, torch.ones_like(background) if everywhere else background

        # MONAI uses only the length and one item of its lists of indices.
        foreground: Any = Candidates(fg_indices, width, lambda row: read_row(row)[0])
        background: Any = Candidates(bg_indices, width, lambda row: read_row(row)[1])
        with warnings.catch_warnings():
            # One for each case without labels, which the check names in one line.
            warnings.filterwarnings("ignore", "Num foregrounds")
            super().randomize(label, foreground, background, image)

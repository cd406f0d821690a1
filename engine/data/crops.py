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


class CountClassesd(CountCandidatesd):
    """Count the foreground of every class instead; a plane, the voxels of one index along D, takes the place of a row.

    So few numbers are kept of many classes, and a plane of labels is read as fast as the crop around one of its voxels.

    Args:
        image_key: as for ``CountCandidatesd``.
        classes: number of classes, the background among them.
    Shape: label (1, D, H, W) -> "foreground_counts" (classes - 1, D), int64; "background_counts" as before.
    """

    VERSION = 1

    def __init__(self, image_key: str | None, classes: int) -> None:
        super().__init__(image_key)
        self.classes = classes

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        planes = data["label"].as_subclass(Tensor)[0]
        counts = torch.stack([torch.bincount(plane.flatten(), minlength=IGNORED_INDEX + 1) for plane in planes])
        return {**super().__call__(data), FOREGROUND: counts[:, 1 : self.classes].cumsum(dim=0).T.contiguous()}


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


class BalancedCandidates:
    """Lazy sequence in which each of several others has the same share, so that a uniform draw is uniform among them.

    Args:
        parts: sequences to draw from; empty ones are left out.
    """

    SHARE = 2**40  # items of each part; its own items are repeated so often that their numbers hardly differ

    def __init__(self, parts: Sequence[Candidates]) -> None:
        self.parts = [part for part in parts if len(part)]

    def __len__(self) -> int:
        return len(self.parts) * self.SHARE

    def __getitem__(self, number: int) -> int:
        part, place = divmod(int(number), self.SHARE)
        return self.parts[part][place * len(self.parts[part]) // self.SHARE]


class RandCropByCountsd(RandCropByPosNegLabeld):
    """MONAI's random crops, identical for the same seed, with centres found from the counts of ``CountCandidatesd``.

    Args:
        keys: entries (channels, D, H, W) to crop.
        size: (D, H, W) of a crop, voxels.
        samples: crops per case.
        image_key: ``image_key`` of ``CountCandidatesd``.
        foreground_share: probability that a crop is centred on foreground, not background.
    """

    def __init__(
        self,
        keys: Sequence[str],
        size: Sequence[int],
        samples: int,
        image_key: str | None,
        foreground_share: float = 0.5,
    ) -> None:
        shares = foreground_share, 1 - foreground_share
        super().__init__(keys, "label", size, *shares, num_samples=samples, image_key=image_key)
        self.fg_indices_key, self.bg_indices_key = FOREGROUND, BACKGROUND

    def randomize(
        self, label: Any = None, fg_indices: Any = None, bg_indices: Any = None, image: Tensor | None = None
    ) -> None:
        height, width = label.shape[2:]
        everywhere = bool(bg_indices[-1] == label.numel())  # whatever the values of image and label

        def read_background(row: int) -> Tensor:
            plane, line = divmod(row, height)
            of_image = None if image is None else image[:, plane, line]
            background = CountCandidatesd.masks(label[:, plane, line], of_image)[1]
            return torch.ones_like(background) if everywhere else background

        # MONAI uses only the length and one item of its lists of indices.
        foreground: Any = self.list_foreground(label, fg_indices)
        background: Any = Candidates(bg_indices, width, read_background)
        with warnings.catch_warnings():
            # One for each case without labels, which the check names in one line.
            warnings.filterwarnings("ignore", "Num foregrounds")
            super().randomize(label, foreground, background, image)

    def list_foreground(self, label: Tensor, counts: Tensor) -> Candidates | BalancedCandidates:
        """List the flat indices of the foreground of a label (1, D, H, W) from its counts."""
        height, width = label.shape[2:]

        def read_row(row: int) -> Tensor:
            plane, line = divmod(row, height)
            return CountCandidatesd.masks(label[:, plane, line], None)[0]

        return Candidates(counts, width, read_row)


class RandCropByClassesd(RandCropByCountsd):
    """Random crops whose centres on foreground are uniform among the classes of a case, found by ``CountClassesd``.

    Args: as ``RandCropByCountsd``.
    """

    def list_foreground(self, label: Tensor, counts: Tensor) -> BalancedCandidates:
        planes = label.as_subclass(Tensor)[0]

        def list_class(index: int, of_class: Tensor) -> Candidates:
            return Candidates(of_class, planes[0].numel(), lambda plane: (planes[plane] == index).flatten())

        return BalancedCandidates([list_class(index, of_class) for index, of_class in enumerate(counts, start=1)])

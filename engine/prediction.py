"""From a network and a preprocessed volume to a label map on the image's own grid."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, Transform
from torch import Tensor, nn

from engine.nifti import save_labels


@dataclass(frozen=True)
class Window:
    """How a sliding window goes over a volume.

    Args:
        roi_size: (D, H, W) of the window, voxels.
        sw_batch_size: windows a forward.
        overlap: share of a window that the next one repeats, from 0 to below 1.
        autocast: makes the context that the network runs in.
    """

    roi_size: Sequence[int]
    sw_batch_size: int
    overlap: float
    autocast: Callable[[], torch.autocast]


def predict_probabilities(network: nn.Module, image: Tensor, window: Window) -> Tensor:
    """Class probabilities of one volume by sliding window.

    Args:
        network: in evaluation mode.
        image: preprocessed, on the network's device; where it is smaller than the window each channel is padded with
            its minimum, as training crops are.
        window: size, overlap and precision.
    Shape: (channels, D, H, W) -> (classes, D, H, W), float32.
    """

    def predictor(windows: Tensor) -> Tensor:
        with window.autocast():
            return network(windows + minimum).float()

    volume = image[None].as_subclass(Tensor)
    minimum = volume.amin(dim=(2, 3, 4), keepdim=True)  # one a channel, which is what padding with 0 then stands for
    with torch.inference_mode():
        shifted = volume - minimum
        logits = sliding_window_inference(shifted, window.roi_size, window.sw_batch_size, predictor, window.overlap)
        assert isinstance(logits, Tensor)  # one output, no dictionary of them
        return logits[0].softmax(dim=0)


class InvertToLabelsd(Transform):
    """Class probabilities "pred" on the grid of "image" -> label map "pred" on the grid that "image" was read from.

    The classes are taken back one at a time and compared, so that the memory needed on the native grid does not grow
    with their number. Voxels outside the foreground crop become background.

    Args:
        transforms: the pipeline that made "image".
    Shape: pred (classes, D, H, W) -> (X, Y, Z), uint8.
    """

    def __init__(self, transforms: Compose) -> None:
        self.transforms = transforms

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        best = self._to_native(data["pred"][:1], data["image"])
        labels = torch.zeros_like(best, dtype=torch.uint8)
        for value in range(1, len(data["pred"])):
            probability = self._to_native(data["pred"][value : value + 1], data["image"])
            labels[probability > best] = value
            best = torch.maximum(best, probability)
        return {**data, "pred": labels.numpy()}

    def _to_native(self, probability: Tensor, image: MetaTensor) -> Tensor:
        operations = deepcopy(image.applied_operations)  # going back uses them up
        placed = MetaTensor(probability.cpu(), meta=image.meta, applied_operations=operations)
        return self.transforms.inverse({"image": placed})["image"][0].as_subclass(Tensor)


class SaveLabelsd(Transform):
    """Write the label map "pred" as <id>_seg.nii.gz, with the affine and header of the image it was predicted from.

    Args:
        output: folder to write to.
    """

    def __init__(self, output: Path) -> None:
        self.output = output

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        save_labels(data["pred"], first_file(data["source"]), self.output / f"{data['id']}_seg.nii.gz")
        return data


def first_file(image: str | list[str]) -> str:
    """The file that gives a case its grid: all the channels share it."""
    return image if isinstance(image, str) else image[0]

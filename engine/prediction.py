"""From a network and a preprocessed volume to a label map on the image's own grid."""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, Transform
from torch import Tensor
from torch.utils.data import Dataset

from engine.cases import image_files
from engine.errors import InputError
from engine.inversion import to_native_labels
from engine.loading import Loader
from engine.nifti import save_labels
from engine.prediction_folder import prediction_path
from engine.process import return_freed_memory
from networks.base import SegmentationNetwork

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Window:
    """How a sliding window goes over a volume.

    Args:
        roi_size: (D, H, W) of the window, voxels.
        sw_batch_size: windows a forward on a GPU; a CPU takes them one by one.
        overlap: share of a window that the next one repeats, from 0 to below 1.
        device: the network's.
        autocast: makes the context that the network runs in.
    """

    roi_size: Sequence[int]
    sw_batch_size: int
    overlap: float
    device: torch.device
    autocast: Callable[[], torch.autocast]


def predict_logits(network: SegmentationNetwork, image: Tensor, window: Window) -> Tensor:
    """Logits of one volume by sliding window, the mean of the windows that cover a voxel.

    Args:
        network: in evaluation mode.
        image: preprocessed, on any device; where it is smaller than the window each channel is padded with its
            minimum, as training crops are.
        window: size, overlap, device and precision.
    Shape: (channels, D, H, W) -> (classes, D, H, W), float32, on the network's device or, where they would crowd it,
        on the CPU.
    """

    def predictor(windows: Tensor) -> Tensor:
        with window.autocast():
            return network(windows + minimum).float()

    volume = image[None].as_subclass(Tensor).to(window.device)
    minimum = volume.amin(dim=(2, 3, 4), keepdim=True)  # one a channel, which is what padding with 0 then stands for
    sides = [max(pair) for pair in zip(window.roi_size, image.shape[1:], strict=True)]
    place = choose_accumulator(network.out_chans, sides, window.device, free_memory(window.device))
    # A CPU gains nothing from several windows at once, whose activations are gigabytes.
    windows_a_forward = 1 if window.device.type == "cpu" else window.sw_batch_size
    with torch.inference_mode():
        shifted = volume - minimum
        logits = sliding_window_inference(
            shifted, window.roi_size, windows_a_forward, predictor, window.overlap, device=place
        )
        assert isinstance(logits, Tensor)  # one output, no dictionary of them
        return logits[0]


def choose_accumulator(classes: int, sides: Sequence[int], device: torch.device, free: float) -> torch.device:
    """Where the windows' logits are added up: on the device if that takes at most half of its free memory.

    The network's activations need the other half.

    Args:
        classes: of the logits; one more volume counts the windows.
        sides: (D, H, W), voxels.
        device: the network's.
        free: its memory, bytes.
    """
    needed = 4 * (classes + 1) * math.prod(sides)
    return device if needed <= free / 2 else torch.device("cpu")


def free_memory(device: torch.device) -> float:
    """Bytes that a GPU has left, PyTorch's own reserve included; a CPU has nowhere to put things instead: infinite."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def case_loader(dataset: Dataset[Any], num_workers: int) -> Loader:
    """Whole cases one at a time; volumes are large, so that one waiting a worker is enough.

    Args:
        dataset: of preprocessed cases.
        num_workers: processes that load.
    """
    ahead = 1 if num_workers else None
    return Loader(dataset, batch_size=None, num_workers=num_workers, prefetch_factor=ahead)


def overlap_steps(items: Iterable[Item], work: Callable[[Item], Result], finish: Callable[[Result], object]) -> None:
    """Do ``work`` on each item, while a thread finishes the item before.

    One item at most waits for its finish, so that memory stays bounded; an error in a finish surfaces here.

    Args:
        items: taken one at a time.
        work: of the calling thread.
        finish: called with what ``work`` returned, one item after the other.
    """
    with ThreadPoolExecutor(1) as thread:
        pending: Future[object] | None = None
        for item in items:
            result = work(item)
            if pending is not None:
                pending.result()
            pending = thread.submit(finish, result)
            del item, result  # the thread alone decides how long they live
        if pending is not None:
            pending.result()


class InvertToLabelsd(Transform):
    """Logits "pred" on the grid of "image" -> label map "pred" on the grid that "image" was read from.

    The dictionary itself is updated, which lets the logits go.

    Args:
        transforms: the pipeline that made "image".
    Shape: pred (classes, D, H, W) -> (X, Y, Z), uint8.
    Raises:
        InputError: logits that are not finite.
    """

    def __init__(self, transforms: Compose) -> None:
        self.transforms = transforms

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        try:
            labels = to_native_labels(data.pop("pred"), data["image"], self.transforms)
        except FloatingPointError as error:
            raise InputError(f"{data['id']}: {error}; --amp off computes in float32") from error
        data["pred"] = labels.numpy()
        return_freed_memory()  # the logits' gigabytes, before the next case's are needed
        return data


class SaveLabelsd(Transform):
    """Write the label map "pred" as <id>_seg.nii.gz, with the affine and header of the image it was predicted from.

    Args:
        output: folder to write to.
    """

    def __init__(self, output: Path) -> None:
        self.output = output

    def __call__(self, data: Any) -> Any:
        save_labels(data["pred"], image_files(data)[0], prediction_path(self.output, data["id"]))
        return data

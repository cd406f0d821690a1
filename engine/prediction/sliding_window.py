"""Logits of a volume by sliding window."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from networks.base import SegmentationNetwork


@dataclass(frozen=True)
class SlidingWindow:
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


def predict_logits(network: SegmentationNetwork, image: Tensor, window: SlidingWindow) -> Tensor:
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

"""Sliding-window inference over a volume."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from engine.runtime.stop_requests import Poll, no_requests
from networks.base import SegmentationNetwork
from networks.large_kernel_conv import keep_kernel_spectra


@dataclass(frozen=True)
class SlidingWindow:
    """Sliding window over a volume.

    Args:
        roi_size: (D, H, W) of the window, voxels.
        sw_batch_size: windows per forward pass on a GPU; on a CPU it is always one.
        overlap: overlap of neighbouring windows as a share of the window, from 0 to below 1.
        device: device of the network.
        autocast: factory of the autocast context that the network runs in.
        mode: weights of the voxels of a window: "constant", or "gaussian" around its centre, as in MONAI.
        poll: called before each forward pass.
    """

    roi_size: Sequence[int]
    sw_batch_size: int
    overlap: float
    device: torch.device
    autocast: Callable[[], torch.autocast]
    mode: Literal["constant", "gaussian"] = "constant"
    poll: Poll = no_requests

    @property
    def per_forward(self) -> int:
        """Windows per forward pass. On a CPU several are no faster, and their activations take gigabytes."""
        return 1 if self.device.type == "cpu" else self.sw_batch_size

    def count(self, sides: Sequence[int]) -> int:
        """Count the windows of a volume of ``sides`` (D, H, W) voxels, as MONAI places them."""
        return math.prod(
            1 + math.ceil(max(side - size, 0) / max(1, int(size * (1 - self.overlap))))
            for side, size in zip(sides, self.roi_size, strict=True)
        )


class AirOnce:
    """Predictor of single windows that computes a window of nothing but air once, since all of them are equal.

    They lie beside arms and legs, around a couch, or in padding. It is for a CPU: on a GPU, asking what a window holds
    would wait until the network is done with the one before.

    Args:
        predict: function from a window to its logits.
    """

    def __init__(self, predict: Callable[[Tensor], Tensor]) -> None:
        self.predict = predict
        self.air: Tensor | None = None  # logits of a window of air, once there was one

    def __call__(self, window: Tensor) -> Tensor:
        """Predict a window, in which 0 is air: the minimum of each channel in the volume.

        Shape: (1, channels, D, H, W) -> (1, classes, D, H, W), to be changed by the caller as it likes.
        """
        if window.any():
            return self.predict(window)
        if self.air is None:
            self.air = self.predict(window)
        return self.air.clone()


def predict_logits(
    network: SegmentationNetwork,
    image: Tensor,
    window: SlidingWindow,
    mirrored: Sequence[int] = (),
    progress: Callable[[int], object] = lambda windows: None,
) -> Tensor:
    """Predict the logits of one volume by sliding window, averaged over the windows that cover a voxel.

    Args:
        network: network in evaluation mode.
        image: preprocessed volume on any device; if it is smaller than the window, each channel is padded with its
            minimum, as training crops are.
        window: size, overlap, device and precision.
        mirrored: axes (0 to 2) along which the network sees each window mirrored; its logits are mirrored back.
        progress: function that is called with the number of windows that are done since the last call.
    Shape: (channels, D, H, W) -> (classes, D, H, W), float32, on the network's device or, if they would take too much
        of its memory, on the CPU.
    """

    def predict(windows: Tensor) -> Tensor:
        window.poll()
        with window.autocast():
            return mirror(network(mirror(windows + minimum)).float())

    def predict_and_report(windows: Tensor) -> Tensor:
        logits = predict_windows(windows)
        progress(len(windows))
        return logits

    def mirror(windows: Tensor) -> Tensor:
        return windows.flip([axis + 2 for axis in mirrored]) if mirrored else windows

    volume = image[None].as_subclass(Tensor).to(window.device)
    # Per channel. It is subtracted for MONAI, which pads with 0, and added again in each window.
    minimum = volume.amin(dim=(2, 3, 4), keepdim=True)
    sides = [max(pair) for pair in zip(window.roi_size, image.shape[1:], strict=True)]
    place = choose_accumulator(network.out_chans, sides, window.device, free_memory(window.device))
    predict_windows = AirOnce(predict) if window.device.type == "cpu" else predict
    with torch.inference_mode(), keep_kernel_spectra(network):
        shifted = volume - minimum
        logits = sliding_window_inference(
            shifted,
            window.roi_size,
            window.per_forward,
            predict_and_report,
            window.overlap,
            window.mode,
            device=place,
        )
        assert isinstance(logits, Tensor)  # a single output, not a dictionary of outputs
        return logits[0]


def choose_accumulator(classes: int, sides: Sequence[int], device: torch.device, free: float) -> torch.device:
    """Choose the device that accumulates the logits: the network's, if that takes at most half of its free memory.

    The network's activations need the other half.

    Args:
        classes: number of classes; one additional volume counts the windows.
        sides: (D, H, W) of the volume, voxels.
        device: device of the network.
        free: free memory of that device, bytes.
    """
    needed = 4 * (classes + 1) * math.prod(sides)
    return device if needed <= free / 2 else torch.device("cpu")


def free_memory(device: torch.device) -> float:
    """Return a GPU's free memory in bytes, PyTorch's unused reserve included; infinite for a CPU, the only fallback."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)

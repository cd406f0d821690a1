"""Sliding-window inference as in Rep3D's test_seg.py."""

from collections.abc import Sequence
from typing import Any, Literal

from monai.inferers import Inferer
from torch import Tensor

from engine.prediction.sliding_window import SlidingWindow, predict_logits
from engine.runtime.devices import choose_precision, make_autocast, to_device
from networks.base import SegmentationNetwork

Mode = Literal["constant", "gaussian"]


class WindowInferer(Inferer):
    """Sliding window that differs from MONAI's SlidingWindowInferer in three ways.

    A volume smaller than the window is padded with the minimum of each channel, as training crops were, and not with 0.
    The spectra of large kernels are computed once per volume. Precision and memory layout are chosen for the device.

    Args:
        roi_size: (D, H, W) of the window, voxels.
        sw_batch_size: windows per forward pass on a GPU.
        overlap: overlap of neighbouring windows as a share of the window.
        mode: weights of the voxels of a window, "constant" or "gaussian".
        amp: precision of autocast, "auto", "bf16", "fp16" or "off".
    Shape: (1, channels, D, H, W) -> logits (1, classes, D, H, W), float32.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 4,
        overlap: float = 0.5,
        mode: Mode = "constant",
        amp: str = "auto",
    ) -> None:
        super().__init__()
        self.roi_size, self.sw_batch_size, self.overlap = roi_size, sw_batch_size, overlap
        self.mode, self.amp = mode, amp

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Predict the logits of one volume, on the device that it is on."""
        (image,) = inputs  # volumes differ in size
        return self._predict(image, network)[None]

    def _predict(self, image: Tensor, network: SegmentationNetwork) -> Tensor:
        device = image.device
        precision = choose_precision(self.amp, device, self.roi_size, network.input_sizes, gradients=False)
        autocast = make_autocast(device, precision)
        window = SlidingWindow(self.roi_size, self.sw_batch_size, self.overlap, device, autocast, self.mode)
        return predict_logits(to_device(network, device), image, window)

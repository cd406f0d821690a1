"""Sliding windows over volumes of any shape, and the device on which their logits are summed."""

from functools import partial

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from engine.prediction.sliding_window import SlidingWindow, choose_accumulator, predict_logits

NO_AUTOCAST = partial(torch.autocast, "cpu", enabled=False)


class BrightIsForeground(nn.Module):
    """Network whose logits depend only on the voxel, not on the window."""

    out_chans = 2

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x], dim=1)


@pytest.mark.parametrize("shape", [(20, 40, 33), (5, 6, 7), (16, 16, 16)])
def test_sliding_window_covers_every_voxel_of_any_volume(shape):
    image = torch.randn(1, *shape)
    logits = predict_logits(
        BrightIsForeground(), image, SlidingWindow((16, 16, 16), 3, 0.5, torch.device("cpu"), NO_AUTOCAST)
    )
    assert logits.shape == (2, *shape)
    assert torch.allclose(logits[1], image[0], atol=1e-6)
    assert not logits[0].any()


def test_logits_are_summed_on_the_gpu_if_they_fit():
    gpu, needed = torch.device("cuda", 1), 4 * 17 * 300 * 200 * 100
    assert choose_accumulator(16, (300, 200, 100), gpu, 2 * needed) == gpu
    assert choose_accumulator(16, (300, 200, 100), gpu, 2 * needed - 1) == torch.device("cpu")
    assert choose_accumulator(16, (300, 200, 100), torch.device("cpu"), float("inf")) == torch.device("cpu")


def test_gaussian_windows_are_monais():
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 5, padding=2)  # whose padding makes a voxel depend on its window
    network.out_chans = 2
    image = torch.rand(1, 20, 21, 18)
    window = partial(SlidingWindow, (8, 12, 10), 1, 0.5, torch.device("cpu"), NO_AUTOCAST)
    found = predict_logits(network, image, window("gaussian"))
    shifted, least = image - image.min(), image.min()
    with torch.inference_mode():
        expected = sliding_window_inference(
            shifted[None], (8, 12, 10), 1, lambda x: network(x + least), 0.5, mode="gaussian"
        )[0]
    assert torch.equal(found, expected)
    assert not torch.allclose(found, predict_logits(network, image, window()), atol=1e-3)

"""Sliding windows over volumes of any shape, and the device on which their logits are summed."""

from functools import partial

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from engine.prediction.sliding_window import AirOnce, SlidingWindow, choose_accumulator, predict_logits

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


@pytest.fixture
def padded_network():
    """Network whose padding makes a voxel depend on its window, and that counts its windows."""
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 5, padding=2)
    network.out_chans, network.windows = 2, 0

    def count(_, inputs):
        network.windows += len(inputs[0])

    network.register_forward_pre_hook(count)
    return network


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("air", [0.0, -3.0])  # the lower end of an intensity window, and the minimum of a z-score
def test_windows_of_air_are_computed_once_with_the_same_result(padded_network, mode, air):
    image = torch.full((1, 30, 20, 18), air)
    image[:, 18:, :8] = 1 + torch.rand(1, 12, 8, 18)
    window = SlidingWindow((8, 8, 8), 1, 0.5, torch.device("cpu"), NO_AUTOCAST, mode)
    found = predict_logits(padded_network, image, window)
    computed, padded_network.windows = padded_network.windows, 0
    with torch.inference_mode():
        expected = sliding_window_inference(
            image[None] - air, (8, 8, 8), 1, lambda x: padded_network(x + air), 0.5, mode=mode
        )[0]
    assert torch.equal(found, expected)
    assert padded_network.windows == window.count((30, 20, 18)) == 7 * 4 * 4
    assert computed == 4 * 2 * 4 + 1


def test_the_logits_of_air_stay_if_a_caller_changes_its_own(padded_network):
    air, predict = torch.zeros(1, 1, 4, 5, 6), AirOnce(padded_network)
    expected = padded_network(air)
    for _ in range(3):
        logits = predict(air)
        torch.testing.assert_close(logits, expected)
        logits.zero_()
    assert padded_network.windows == 1 + 1


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(20, 40, 33), (5, 6, 7), (16, 17, 31)])
def test_all_windows_are_counted_and_reported(padded_network, shape, overlap):
    window, reported = SlidingWindow((16, 14, 15), 3, overlap, torch.device("cpu"), NO_AUTOCAST), []
    if overlap == 0.99:
        shape = tuple(min(side, 18) for side in shape)  # a step of one voxel takes many windows
    predict_logits(padded_network, torch.rand(1, *shape), window, progress=reported.append)
    assert sum(reported) == padded_network.windows == window.count(shape)

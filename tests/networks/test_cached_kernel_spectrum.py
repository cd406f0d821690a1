"""LargeKernelConv3d caches the spectrum of its kernel for inference: equal results, and no stale or saved spectrum."""

import copy
import pickle

import pytest
import torch
from torch import nn

import networks.large_kernel_conv as conv_module
from networks import build_network
from networks.large_kernel_conv import LargeKernelConv3d, large_kernel_conv3d


@pytest.fixture(autouse=True)
def fft_everywhere(monkeypatch):
    """Use the FFT for every convolution, however small."""
    monkeypatch.setattr(conv_module, "choose_method", lambda x, weight, direction: "fft")


@pytest.fixture
def layer():
    """Build a layer that has cached the spectrum of its kernel, and an input."""
    torch.manual_seed(0)
    layer, x = LargeKernelConv3d(7, 5).eval(), torch.randn(2, 7, 6, 7, 8)
    with torch.no_grad():
        layer(x)
    assert layer.kernel_spectrum._kept is not None
    return layer, x


@pytest.fixture
def transformed_kernels(monkeypatch):
    """List that records every transform of a kernel."""
    calls = []
    transform = conv_module._kernel_spectrum
    monkeypatch.setattr(conv_module, "_kernel_spectrum", lambda *args: calls.append(args) or transform(*args))
    return calls


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_cached_spectrum_saves_a_transform_and_changes_no_bit(layer, transformed_kernels, monkeypatch, mode):
    layer, x = layer
    monkeypatch.setattr(conv_module, "CPU_SPECTRUM_BYTES", 24_000)
    chunks = [len(conv_module._channel_chunks(part, layer.weight)) for part in (x, x[:1])]
    assert chunks == [3, 2]  # a smaller batch has other chunks
    with mode():
        found = layer(x), layer(x[:1])
        assert not transformed_kernels
        expected = [large_kernel_conv3d(part, layer.weight, layer.bias) for part in (x, x[:1])]
    assert transformed_kernels
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def fold_into(layer):
    """Replace the parameter, as ``switch_to_deploy(fuse_norm=True)`` does."""
    layer.weight = nn.Parameter(2 * layer.weight.detach())


def replace_data(layer):
    layer.weight.data = 2 * layer.weight.data


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.load_state_dict({key: 2 * value for key, value in layer.state_dict().items()}),
        lambda layer: layer.weight.mul_(2),
        lambda layer: layer.weight[0].zero_(),
        fold_into,
        replace_data,
    ],
    ids=["load_state_dict", "in place", "through a view", "new parameter", "new data"],
)
def test_a_changed_kernel_is_transformed_again(layer, change):
    layer, x = layer
    with torch.no_grad():
        before = layer(x)
        change(layer)
        found, expected = layer(x), large_kernel_conv3d(x, layer.weight, layer.bias)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


def test_another_grid_or_type_is_transformed_again(layer):
    layer, x = layer
    with torch.no_grad():
        for image in (x[..., :3], x.double(), x):
            assert torch.equal(layer(image), large_kernel_conv3d(image, layer.weight, layer.bias))
        layer.double()
        assert torch.equal(layer(x.double()), large_kernel_conv3d(x.double(), layer.weight, layer.bias))


def test_a_step_of_a_fused_optimiser_is_noticed(layer):
    layer, x = layer
    layer(x).square().sum().backward()
    torch.optim.AdamW(layer.parameters(), fused=True).step()  # does not increase the version counter
    with torch.no_grad():
        assert torch.equal(layer(x), large_kernel_conv3d(x, layer.weight, layer.bias))


def test_the_spectrum_is_not_saved_copied_or_kept_in_training(layer):
    layer, x = layer
    assert layer.state_dict().keys() == {"weight", "bias"}
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.kernel_spectrum._kept is None
    for forget in (lambda: layer(x), layer.train, layer.eval):  # gradients are needed, or the mode changes
        with torch.no_grad():
            layer.eval()(x)
        assert layer.kernel_spectrum._kept is not None
        forget()
        assert layer.kernel_spectrum._kept is None
    with torch.no_grad():
        layer.train()(x)
    assert layer.kernel_spectrum._kept is None


def test_a_spectrum_beyond_the_budget_is_not_kept():
    layer, x = LargeKernelConv3d(2, 5), torch.randn(1, 2, 6, 7, 8)
    with torch.no_grad():
        known = layer.kernel_spectrum
        out = large_kernel_conv3d(x, layer.weight, budget=2 * 8 * 9 * 6 * 8 - 1, known=known)
        assert known._kept is None
        assert torch.equal(out, large_kernel_conv3d(x, layer.weight, budget=2 * 8 * 9 * 6 * 8, known=known))
        assert known._kept is not None


def test_a_deployed_network_transforms_its_kernels_once(transformed_kernels):
    torch.manual_seed(0)
    network = build_network("REP3D", 1, 2, feat_size=(2, 2, 2, 2), kernel_size=5).eval()
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        network.switch_to_deploy()(x)
        transformed_kernels.clear()
        expected = network(x)
        assert not transformed_kernels
        network.switch_to_deploy(fuse_norm=True)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    assert len(transformed_kernels) == 8

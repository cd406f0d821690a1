"""Networks keep the spectra of their kernels within ``keep_kernel_spectra`` only: equal results, never stale ones."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import networks.large_kernel_conv as conv_module
from engine.prediction.sliding_window import SlidingWindow, predict_logits
from networks import build_network
from networks.large_kernel_conv import KernelSpectrum, LargeKernelConv3d, keep_kernel_spectra, large_kernel_conv3d


@pytest.fixture(autouse=True)
def fft_everywhere(monkeypatch):
    """Use the FFT for every convolution, however small."""
    monkeypatch.setattr(conv_module, "choose_method", lambda x, weight, direction: "fft")


@pytest.fixture
def problem():
    """Build a layer in evaluation mode and an input."""
    torch.manual_seed(0)
    return LargeKernelConv3d(7, 5).eval(), torch.randn(2, 7, 6, 7, 8)


@pytest.fixture
def transformed_kernels(monkeypatch):
    """List that records every transform of a kernel."""
    calls = []
    transform = conv_module._kernel_spectrum
    monkeypatch.setattr(conv_module, "_kernel_spectrum", lambda *args: calls.append(args) or transform(*args))
    return calls


def make_network(name, seed=0):
    """Build a small network in its deployed form, in evaluation mode."""
    torch.manual_seed(seed)
    return build_network(name, 1, 2, feat_size=(2, 2, 2, 2), kernel_size=5).switch_to_deploy().eval()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_kept_spectrum_saves_a_transform_and_changes_no_bit(problem, transformed_kernels, monkeypatch, mode):
    layer, x = problem
    monkeypatch.setattr(conv_module, "CPU_SPECTRUM_BYTES", 24_000)
    chunks = [len(conv_module._channel_chunks(part, layer.weight)) for part in (x, x[:1])]
    assert chunks == [3, 2]  # a smaller batch has other chunks
    with mode(), keep_kernel_spectra(layer):
        layer(x)
        transformed_kernels.clear()
        found = layer(x), layer(x[:1])
        assert not transformed_kernels
        expected = [large_kernel_conv3d(part, layer.weight, layer.bias) for part in (x, x[:1])]
    assert transformed_kernels
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def follow_by_arithmetic(parameter, other):
    parameter.data.mul_(0.9).add_(other.data, alpha=0.1)


def copy_data(parameter, other):
    parameter.data.copy_(other.data)


def edit_in_numpy(parameter, other):
    parameter.data.numpy()[...] = other.detach().numpy()


def replace_data(parameter, other):
    parameter.data = other.detach().clone()


def step_of_a_fused_optimiser(parameter, other):
    parameter.grad = other.detach().clone()
    torch.optim.SGD([parameter], lr=1.0, fused=True).step()


@torch.no_grad()
def copy_in_place(parameter, other):
    parameter.copy_(other)


CHANGES = (follow_by_arithmetic, copy_data, edit_in_numpy, replace_data, step_of_a_fused_optimiser, copy_in_place)


@pytest.mark.parametrize("name", ["REP3D", "REP3D_NONE", "REPOPT"])
def test_a_mean_teacher_computes_with_its_present_weights(name):
    """No edit of the weights is missed, not even those that autograd's version counter does not see."""
    teacher, student = make_network(name), make_network(name, seed=1)
    x = torch.randn(1, 1, 16, 16, 32)
    with torch.no_grad():
        before = teacher(x)
    for change in CHANGES:
        for parameter, other in zip(teacher.parameters(), student.parameters(), strict=True):
            change(parameter, other)
        fresh = make_network(name)
        fresh.load_state_dict(teacher.state_dict())
        with torch.no_grad():
            found = teacher(x)
            assert torch.equal(found, fresh(x)), change.__name__
        assert not torch.equal(found, before), change.__name__
        teacher.load_state_dict(make_network(name).state_dict())
        with torch.no_grad():
            assert torch.equal(teacher(x), before), change.__name__


def test_another_grid_or_type_is_transformed_again(problem):
    layer, x = problem
    with torch.no_grad(), keep_kernel_spectra(layer):
        for image in (x, x[..., :3], x.double(), x):
            assert torch.equal(layer(image), large_kernel_conv3d(image, layer.weight, layer.bias))


def test_a_grid_of_the_same_circular_length_is_transformed_again():
    """A kernel of side 23 reaches 10 voxels far in a grid of 11 and 11 voxels far in a grid of 12."""
    layer, x = LargeKernelConv3d(1, 23).eval(), torch.randn(1, 1, 2, 2, 12)
    grids = x[..., :11], x
    reached = [conv_module.crop_to_reach(layer.weight, image.shape[2:]) for image in grids]
    lengths = [conv_module.circular_lengths(*pair) for pair in zip(grids, reached, strict=True)]
    assert lengths[0] == lengths[1]
    with torch.no_grad(), keep_kernel_spectra(layer):
        for image in grids:
            assert torch.equal(layer(image), large_kernel_conv3d(image, layer.weight, layer.bias))


def test_a_spectrum_of_inference_mode_serves_after_it(problem):
    layer, x = problem
    with keep_kernel_spectra(layer):
        with torch.inference_mode():
            expected = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), expected)


def test_training_and_gradients_use_no_kept_spectrum(problem):
    layer, x = problem
    with keep_kernel_spectra(layer):
        with torch.no_grad():
            layer(x)
            layer.weight.mul_(2)
            assert torch.equal(layer.train()(x), large_kernel_conv3d(x, layer.weight, layer.bias))
        layer.eval()
        found = layer(x)
        assert torch.equal(found, large_kernel_conv3d(x, layer.weight, layer.bias))
        (grad,) = torch.autograd.grad(found.sum(), layer.weight)
    assert grad.any()


def test_nothing_is_kept_outside_the_context_saved_or_copied(problem):
    layer, x = problem
    with torch.no_grad():
        layer(x)
        assert layer.kept_spectrum is None
        with keep_kernel_spectra(nn.Sequential(layer)):
            layer(x)
            kept = layer.kept_spectrum
            assert isinstance(kept, KernelSpectrum)
            assert layer.state_dict().keys() == {"weight", "bias"}
            for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
                assert twin.kept_spectrum is None
                assert torch.equal(twin(x), layer(x))
            with keep_kernel_spectra(layer):
                assert layer.kept_spectrum is kept
            assert layer.kept_spectrum is kept
    assert layer.kept_spectrum is None
    with pytest.raises(KeyError), keep_kernel_spectra(layer):
        raise KeyError
    assert layer.kept_spectrum is None


def test_a_spectrum_beyond_the_budget_is_not_kept(transformed_kernels):
    layer, x = LargeKernelConv3d(2, 5), torch.randn(1, 2, 6, 7, 8)
    budget, known = 2 * 8 * 9 * 6 * 8, KernelSpectrum()  # channels, lengths with half of the last, bytes per number
    outputs = []
    with torch.no_grad():
        for bytes_, transforms in ((budget - 1, 2), (budget, 1)):
            transformed_kernels.clear()
            outputs += [large_kernel_conv3d(x, layer.weight, budget=bytes_, known=known) for _ in range(2)]
            assert len(transformed_kernels) == transforms
    assert all(torch.equal(out, outputs[0]) for out in outputs)


def test_prediction_transforms_each_kernel_once_for_all_windows(transformed_kernels):
    network = make_network("REP3D")
    no_autocast = partial(torch.autocast, "cpu", enabled=False)
    window = SlidingWindow((16, 16, 32), 1, 0.5, torch.device("cpu"), no_autocast)
    image = torch.randn(1, 24, 16, 40)
    transformed_kernels.clear()  # of the kernels in the generators of the masks, to deploy the network
    expected = predict_logits(network, image, window)
    assert len(transformed_kernels) == 8
    with keep_kernel_spectra(network):
        for _ in range(2):
            assert torch.equal(predict_logits(network, image, window), expected)
    assert len(transformed_kernels) == 16


def test_validation_transforms_each_masked_kernel_once(transformed_kernels):
    """The network of training, whose kernels are products with a mask, keeps their spectra in evaluation mode only."""
    torch.manual_seed(0)
    network = build_network("REP3D_FIXED", 1, 2, feat_size=(2, 2, 2, 2), kernel_size=5).eval()
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected = network(x)
        transformed_kernels.clear()
        with keep_kernel_spectra(network):
            assert all(torch.equal(network(x), expected) for _ in range(3))
            assert len(transformed_kernels) == 8
            network.train()(x)
        assert len(transformed_kernels) == 16

"""The large depthwise convolution equals F.conv3d(groups=C): output and all gradients, both methods, any grid."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import networks.large_kernel_conv as conv_module
from networks.large_kernel_conv import LargeKernelConv3d, choose_method, large_kernel_conv3d
from networks.Rep3D.lrbm import ReplicatePaddedConv3d

# batch, channels, grid, kernel
PROBLEMS = {
    "odd grid": (1, 2, (9, 9, 9), (5, 5, 5)),
    "even grid": (2, 3, (8, 8, 8), (7, 7, 7)),
    "anisotropic grid": (2, 2, (5, 12, 7), (5, 5, 5)),
    "anisotropic kernel": (2, 3, (6, 7, 8), (3, 9, 5)),
    "paper's kernel": (2, 2, (12, 14, 10), (21, 21, 21)),
    "kernel cropped on some axes": (1, 2, (4, 12, 3), (21, 7, 21)),
    "side 1": (2, 2, (1, 1, 1), (21, 21, 21)),
    "side 2": (2, 2, (2, 2, 2), (21, 21, 21)),
    "side 3": (1, 3, (3, 3, 3), (21, 21, 21)),
    "flat grid": (1, 2, (6, 1, 4), (1, 21, 3)),
    "kernel of one tap": (2, 2, (4, 5, 6), (1, 1, 1)),
}
METHODS = ("direct", "fft")
METHOD_PAIRS = list(itertools.product(METHODS, METHODS))  # forward, backward


def make_problem(batch, channels, grid, kernel, dtype=torch.float64):
    """Draw input, weight and bias, leaves that require gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, channels, *grid), (channels, 1, *kernel), (channels,)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def reference(x, weight, bias=None):
    return F.conv3d(x, weight, bias, padding=[side // 2 for side in weight.shape[2:]], groups=len(weight))


def all_passes(convolve, tensors, dtype=None):
    """Compute output and gradients of ``convolve`` for a fixed gradient of the output, on copies of the leaves."""
    leaves = [tensor.detach().to(dtype or tensor.dtype).requires_grad_(tensor.requires_grad) for tensor in tensors]
    out = convolve(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out.backward(grad.to(out.dtype))
    return out.detach(), *(leaf.grad for leaf in leaves)


def assert_close(found, expected, tolerance):
    """Bound each tensor's largest error relative to its largest expected value; None must be expected."""
    for name, ours, theirs in zip(("out", "dx", "dw", "dbias"), found, expected, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.shape == theirs.shape
            error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
            assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.fixture
def set_methods(monkeypatch):
    """Replace the choice of the method of each pass."""

    def set_methods(forward, backward):
        methods = {"forward": forward, "backward": backward}
        monkeypatch.setattr(conv_module, "choose_method", lambda x, weight, direction: methods[direction])

    return set_methods


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_pass_equals_conv3d(problem, method, dtype, tolerance):
    tensors = make_problem(*problem, dtype=dtype)
    found = all_passes(lambda *leaves: large_kernel_conv3d(*leaves, method=method), tensors)
    assert {tensor.dtype for tensor in found} == {dtype}
    assert_close(found, all_passes(reference, tensors, dtype=torch.float64), tolerance)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    grid=st.tuples(*[st.integers(1, 7)] * 3),
    kernel=st.tuples(*[st.sampled_from((1, 3, 5, 7, 9))] * 3),
)
def test_fft_equals_conv3d_on_any_small_problem(batch, channels, grid, kernel):
    tensors = make_problem(batch, channels, grid, kernel)
    found = all_passes(lambda *leaves: large_kernel_conv3d(*leaves, method="fft"), tensors)
    for ours, theirs in zip(found, all_passes(reference, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("forward", "backward"), METHOD_PAIRS)
def test_each_pass_takes_the_chosen_method(forward, backward, set_methods, monkeypatch):
    set_methods(forward, backward)
    tensors = make_problem(2, 3, (6, 7, 8), (5, 5, 5))
    expected = all_passes(reference, tensors)
    transforms = []
    rfftn = torch.fft.rfftn
    monkeypatch.setattr(torch.fft, "rfftn", lambda *args, **kwargs: transforms.append(args) or rfftn(*args, **kwargs))

    out = large_kernel_conv3d(*tensors)
    assert bool(transforms) == (forward == "fft")
    transforms.clear()
    out.sum().backward()
    assert bool(transforms) == (backward == "fft")
    assert_close(all_passes(large_kernel_conv3d, tensors), expected, 1e-10)


def test_choice_depends_on_shape_and_pass():
    def choose(channels, side, ks, direction):
        x, weight = torch.empty(1, channels, side, side, side, device="meta"), torch.empty(channels, 1, ks, ks, ks)
        return choose_method(x, weight, direction)

    assert choose(48, 48, 21, "backward") == "fft"
    assert choose(384, 6, 11, "forward") == "direct"
    assert choose(48, 8, 1, "backward") == "direct"


def test_lengths_are_the_shortest_without_large_factors():
    def is_smooth(number):
        for factor in (2, 3, 5, 7):
            while number % factor == 0:
                number //= factor
        return number == 1

    for side in range(1, 200):
        x, weight = torch.empty(1, 1, side, side, side, device="meta"), torch.empty(1, 1, 1, 1, 1)
        *rows, last = conv_module.circular_lengths(x, weight)
        assert rows == [next(number for number in range(side, 400) if is_smooth(number))] * 2
        assert last == next(number for number in range(side, 400) if is_smooth(number) and number % 2 == 0)


@pytest.mark.parametrize("backward", METHODS)
def test_chunks_of_channels_do_not_change_the_result(backward, set_methods, monkeypatch):
    set_methods("fft", backward)
    tensors = make_problem(2, 7, (5, 6, 4), (5, 3, 7))
    whole = all_passes(large_kernel_conv3d, tensors)
    x, weight, _ = tensors
    for spectra in (1, 3):  # channels per chunk: 7 chunks, and 3 with a shorter last one
        lengths = conv_module.circular_lengths(x, weight)
        spectrum_bytes = 2 * lengths[0] * lengths[1] * (lengths[2] // 2 + 1) * 16
        monkeypatch.setattr(conv_module, "CPU_SPECTRUM_BYTES", spectra * spectrum_bytes)
        assert len(conv_module._channel_chunks(x, weight)) == -(-7 // spectra)
        assert_close(all_passes(large_kernel_conv3d, tensors), whole, 1e-12)


@pytest.mark.parametrize(("forward", "backward"), METHOD_PAIRS)
def test_autocast_gives_the_types_of_conv3d(forward, backward, set_methods):
    set_methods(forward, backward)
    tensors = make_problem(2, 3, (6, 6, 6), (5, 5, 5), dtype=torch.float32)

    def under_autocast(convolve):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return convolve(*tensors)

    out = under_autocast(large_kernel_conv3d)
    assert out.dtype == under_autocast(reference).dtype == torch.bfloat16
    found = all_passes(
        lambda *leaves: torch.autocast("cpu", dtype=torch.bfloat16)(large_kernel_conv3d)(*leaves), tensors
    )
    assert [tensor.dtype for tensor in found[1:]] == [torch.float32] * 3
    assert_close(found, all_passes(reference, tensors), 1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_tensors_stay_bfloat16(method):
    tensors = make_problem(2, 3, (6, 6, 6), (5, 5, 5), dtype=torch.bfloat16)
    found = all_passes(lambda *leaves: large_kernel_conv3d(*leaves, method=method), tensors)
    assert {tensor.dtype for tensor in found} == {torch.bfloat16}
    assert_close(found, all_passes(reference, tensors, dtype=torch.float32), 2e-2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_wanted_gradient_is_returned(method, wanted):
    tensors = make_problem(2, 3, (4, 5, 6), (5, 5, 5))
    for tensor, wants in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(wants)
    found = all_passes(lambda *leaves: large_kernel_conv3d(*leaves, method=method), tensors)
    assert_close(found, all_passes(reference, tensors), 1e-10)


@pytest.mark.parametrize(("wanted", "inverse_transforms"), [((True, True), 2), ((True, False), 1), ((False, True), 1)])
def test_fft_spends_no_transform_on_an_unwanted_gradient(wanted, inverse_transforms, monkeypatch):
    x, weight, _ = make_problem(1, 2, (4, 5, 6), (5, 5, 5))
    out = large_kernel_conv3d(x.requires_grad_(wanted[0]), weight.requires_grad_(wanted[1]), method="fft")
    calls = []
    irfftn = torch.fft.irfftn
    monkeypatch.setattr(torch.fft, "irfftn", lambda *args, **kwargs: calls.append(args) or irfftn(*args, **kwargs))
    out.sum().backward()
    assert len(calls) == inverse_transforms


@pytest.mark.parametrize(("forward", "backward"), METHOD_PAIRS)
def test_gradcheck(forward, backward, set_methods):
    set_methods(forward, backward)
    assert torch.autograd.gradcheck(large_kernel_conv3d, make_problem(2, 2, (2, 3, 2), (3, 3, 5)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "layout",
    [
        lambda tensor: tensor.transpose(2, 4),
        lambda tensor: tensor[..., ::2],
        lambda tensor: tensor.to(memory_format=torch.channels_last_3d),
    ],
    ids=["transposed", "strided", "channels_last_3d"],
)
def test_memory_layout_does_not_matter(method, layout):
    tensors = make_problem(2, 3, (6, 5, 8), (3, 3, 3))
    found = all_passes(lambda x, *rest: large_kernel_conv3d(layout(x), *rest, method=method), tensors)
    assert_close(found, all_passes(lambda x, *rest: reference(layout(x), *rest), tensors), 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_no_grad_gives_the_same_output(method):
    tensors = make_problem(1, 2, (6, 6, 6), (5, 5, 5))
    with torch.no_grad():
        out = large_kernel_conv3d(*tensors, method=method)
    assert not out.requires_grad
    torch.testing.assert_close(out, reference(*tensors).detach(), rtol=0, atol=1e-10)


def saved_bytes(run):
    """Return the bytes of the storages that autograd keeps for the backward pass of ``run()``."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(storages.values())


@pytest.mark.parametrize("batch", [1, 3])
def test_budget_decides_what_is_kept_and_no_bit_of_the_result(batch):
    x, weight, _ = make_problem(batch, 5, (6, 7, 8), (5, 7, 3), dtype=torch.float32)
    spectra_bytes = (batch + 1) * 5 * (8 * 10 * (10 // 2 + 1)) * 8  # lengths 6 + 2, 7 + 3, 8 + 1 made even; complex64

    def convolve(budget):
        return lambda x, weight: large_kernel_conv3d(x, weight, method="fft", budget=budget)

    passes = {budget: all_passes(convolve(budget), (x, weight)) for budget in (spectra_bytes, spectra_bytes - 1)}
    kept, recomputed = passes.values()
    assert all(torch.equal(*pair) for pair in zip(kept, recomputed, strict=True))
    assert spectra_bytes <= saved_bytes(lambda: convolve(spectra_bytes)(x, weight)) < spectra_bytes + 16
    leaves = x.untyped_storage().nbytes() + weight.untyped_storage().nbytes()
    assert saved_bytes(lambda: convolve(spectra_bytes - 1)(x, weight)) == leaves


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "message"),
    [
        ((1, 2, 4, 4, 4), (2, 1, 3, 4, 3), r"kernel sides \(3, 4, 3\), expected odd"),
        ((4, 4, 4), (2, 1, 3, 3, 3), r"input: found shape \(4, 4, 4\), expected \(N, C, D, H, W\) or \(C, D, H, W\)"),
        ((3, 4, 4, 4), (2, 1, 3, 3, 3), r"weight: found shape .* expected \(3, 1,"),
        ((1, 2, 4, 4, 4), (2, 1, 3, 3), r"weight: found shape \(2, 1, 3, 3\)"),
        ((1, 2, 4, 4, 4), (3, 1, 3, 3, 3), r"weight: found shape .* expected \(2, 1,"),
        ((1, 2, 4, 4, 4), (2, 2, 3, 3, 3), r"weight: found shape .* expected \(2, 1,"),
    ],
)
def test_invalid_shapes_are_refused(x_shape, weight_shape, message):
    with pytest.raises(ValueError, match=message):
        large_kernel_conv3d(torch.zeros(x_shape), torch.zeros(weight_shape))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_interchanges_with_conv3d(bias):
    torch.manual_seed(0)
    ours = LargeKernelConv3d(3, 9, bias=bias)
    torch.manual_seed(0)
    plain = nn.Conv3d(3, 3, 9, padding=4, groups=3, bias=bias)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), f"{key}: another initialisation"

    x = torch.randn(2, 3, 10, 12, 8)
    for source, target in ((ours, copy.deepcopy(plain)), (plain, copy.deepcopy(ours))):
        for parameter in target.parameters():
            nn.init.normal_(parameter)
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(target(x), source(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer_class", "padding"), [(LargeKernelConv3d, "zeros"), (ReplicatePaddedConv3d, "replicate")]
)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 9, 8, 10), (3, 9, 8, 10)], ids=["empty batch", "without batch"])
def test_layer_accepts_the_shapes_of_conv3d(shape, autocast, layer_class, padding):
    torch.manual_seed(0)
    ours = layer_class(3, 21)
    theirs = nn.Conv3d(3, 3, 21, padding=10, groups=3, padding_mode=padding)
    theirs.load_state_dict(ours.state_dict())
    x, results = torch.randn(shape), []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", enabled=autocast):
            out = layer(leaf)
            with torch.no_grad():
                torch.testing.assert_close(layer.eval()(x), out)
        out.sum().backward()
        results.append([out, leaf.grad, *(parameter.grad for parameter in layer.parameters())])
    for found, expected in zip(*results, strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert (found - expected).norm() <= (1e-2 if autocast else 1e-5) * expected.norm()


@pytest.mark.parametrize(("forward", "backward"), METHOD_PAIRS)
def test_a_single_sample_needs_no_batch(forward, backward, set_methods):
    set_methods(forward, backward)
    x, weight, bias = make_problem(1, 3, (6, 7, 8), (5, 5, 5))
    tensors = x[0].detach().requires_grad_(), weight, bias
    found = all_passes(large_kernel_conv3d, tensors)
    assert found[0].shape == (3, 6, 7, 8)
    assert_close(found, all_passes(reference, tensors), 1e-10)


@pytest.mark.parametrize("kernel_size", [4, 0, -3])
def test_layer_refuses_an_invalid_kernel_size(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size: found {kernel_size}, expected an odd"):
        LargeKernelConv3d(2, kernel_size)


@pytest.mark.parametrize("method", METHODS)
def test_layer_takes_the_method_that_is_set(method, monkeypatch):
    layer, called = LargeKernelConv3d(2, 5), []
    transform = torch.fft.rfftn
    monkeypatch.setattr(torch.fft, "rfftn", lambda *rest, **more: called.append(1) or transform(*rest, **more))
    x = torch.randn(1, 2, 8, 8, 8)
    expected = nn.functional.conv3d(x, layer.weight, layer.bias, padding=2, groups=2)
    layer.method = method
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    assert bool(called) == (method == "fft")

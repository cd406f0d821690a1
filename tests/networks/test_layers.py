"""Layers of this project compared with PyTorch's."""

import copy

import pytest
import torch
from torch import nn

from engine.runtime.devices import to_device
from networks import build_network
from networks.layers import ChannelsLastInstanceNorm3d

CHANNELS_LAST = torch.channels_last_3d


def noisy(*shape, **options):
    """Draw values whose mean and scale differ by sample and channel, with means far from zero."""
    offsets = torch.arange(shape[0] * shape[1], **options).reshape(*shape[:2], 1, 1, 1)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), **options) * (1 + offsets) + 5 * offsets


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 6), (1, 1, 2, 2, 1), (3, 4, 1, 1, 7)])
def test_instance_norm_equals_pytorch(shape, affine):
    theirs = nn.InstanceNorm3d(shape[1], affine=affine, dtype=torch.float64)
    if affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours = ChannelsLastInstanceNorm3d.like(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    results = []
    for norm in (theirs, ours):
        x = noisy(*shape, dtype=torch.float64).requires_grad_()
        out = norm(x)
        inputs = [x, *norm.parameters()]
        results.append([out, *torch.autograd.grad((out * noisy(*shape, dtype=torch.float64).cos()).sum(), inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_accepts_an_empty_batch(affine):
    norm, x = ChannelsLastInstanceNorm3d(3, affine=affine), torch.empty(0, 3, 4, 5, 6, requires_grad=True)
    out = norm(x)
    gradients = torch.autograd.grad(out.sum(), [x, *norm.parameters()])
    assert out.shape == x.shape
    assert [gradient.shape for gradient in gradients] == [x.shape, *(each.shape for each in norm.parameters())]
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("gradients", [True, False])
def test_instance_norm_is_exact_on_a_large_grid(gradients):
    """A plain float32 sum over 262,144 voxels, as in PyTorch's channels-last batch normalisation, would not be."""
    x = noisy(1, 8, 64, 64, 64)
    expected = nn.functional.instance_norm(x.double())
    with torch.set_grad_enabled(gradients):
        found = ChannelsLastInstanceNorm3d(8)(x.contiguous(memory_format=CHANNELS_LAST))
    assert (found - expected).abs().max() < 3e-6
    assert found.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 5, 4, 6), (1, 8, 1, 48, 48), (1, 2, 40, 1, 1), (1, 1, 1, 1, 2)])
def test_instance_norm_of_a_sample_without_gradients_equals_pytorch(shape, dtype, affine):
    norm = ChannelsLastInstanceNorm3d(shape[1], affine=affine).to(torch.promote_types(dtype, torch.float32))
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = noisy(*shape).to(dtype)
    expected = nn.InstanceNorm3d.forward(norm.double(), x.double())
    norm.to(torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        found = norm(x)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=CHANNELS_LAST)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_keeps_the_type_and_refuses_one_voxel(affine):
    norm = ChannelsLastInstanceNorm3d(2, affine=affine)
    assert norm(noisy(1, 2, 3, 3, 3).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="more than one voxel"):
        ChannelsLastInstanceNorm3d(2)(torch.ones(2, 2, 1, 1, 1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("REP3D", {"feat_size": (4, 4, 8, 8), "kernel_size": 5}),
        ("nnUNet", {}),
        ("STUNet_S", {"feat_size": (4, 4, 8, 8, 8, 8)}),
    ],
    ids=["REP3D", "nnUNet", "STUNet_S"],
)
def test_placed_on_a_cpu_a_network_computes_the_same(name, options):
    torch.manual_seed(0)
    plain = build_network(name, 1, 3, (32, 32, 64), **options).eval()
    placed = to_device(copy.deepcopy(plain), torch.device("cpu"))
    norms = [module for module in placed.modules() if isinstance(module, nn.InstanceNorm3d)]
    assert norms
    assert all(isinstance(norm, ChannelsLastInstanceNorm3d) for norm in norms)
    assert placed.state_dict().keys() == plain.state_dict().keys()
    image = torch.randn(2, 1, 32, 32, 64)
    with torch.no_grad():
        expected, found = plain(image), placed(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * expected.std().item())


def test_compiled_normalisation_has_the_gradient_of_the_plain_one():
    """Under PyTorch 2.11's compiler, an autograd function that computes its output in place has no gradient."""
    norm = ChannelsLastInstanceNorm3d(4, affine=True)
    x, grad = torch.randn(2, 4, 5, 6, 7), torch.randn(2, 4, 5, 6, 7)
    found = []
    for forward in (norm, torch.compile(norm, backend="eager")):
        leaf = x.to(memory_format=torch.channels_last_3d, copy=True).requires_grad_()
        found.append(torch.autograd.grad(forward(leaf), leaf, grad)[0])
    assert found[0].norm() > 0
    assert torch.equal(*found)

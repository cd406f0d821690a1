"""The same numbers on a GPU as on a CPU."""

import pytest
import torch
from test_networks import SMALLEST

from engine.rep_optimizer import scale_updates
from networks import NETWORKS, build_network
from networks.large_kernel_conv import large_kernel_conv3d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]


def gradients(device, method):
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(shape, generator=generator) for shape in ((2, 3, 9, 12, 7), (3, 1, 7, 7, 7), (2, 3, 9, 12, 7))
    )
    x, weight = x.to(device).requires_grad_(), weight.to(device).requires_grad_()
    out = large_kernel_conv3d(x, weight, method=method)
    return [tensor.cpu() for tensor in (out.detach(), *torch.autograd.grad(out, (x, weight), grad.to(device)))]


@pytest.mark.parametrize("method", ["fft", "direct", None])
def test_convolution_agrees_with_the_cpu(method):
    for found, expected in zip(gradients("cuda", method), gradients("cpu", "direct"), strict=True):
        assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_network_trains_under_autocast(dtype):
    network = build_network("REP3D", 1, 3, feat_size=(8, 8, 8, 8), kernel_size=7).cuda()
    with torch.autocast("cuda", dtype):
        loss = network(torch.randn(2, 1, 32, 32, 32, device="cuda")).float().square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("STUNet_L", "STUNet_H")])
def test_every_network_agrees_with_the_cpu(name):
    torch.manual_seed(0)
    network = build_network(name, 1, 3, SMALLEST[name]).eval()
    x = torch.randn(1, 1, *SMALLEST[name])
    with torch.no_grad():
        expected = network(x)
        found = network.cuda()(x.cuda()).cpu()
    assert (found - expected).square().mean().sqrt() < 1e-2 * expected.std()  # TF32 convolutions


def test_rep_optimizer_steps_on_the_device():
    network = build_network("REPOPT", 1, 3, feat_size=(8, 8, 8, 8), kernel_size=7).cuda()
    optimizer = torch.optim.AdamW(network.parameters())
    scale_updates(optimizer, network)
    kernel = network.encoder.stages[0][0].dwconv.weight
    before = kernel.detach().clone()
    network(torch.randn(1, 1, 32, 32, 32, device="cuda")).square().mean().backward()
    optimizer.step()
    assert not torch.equal(kernel, before)

"""The same numbers on a GPU as on a CPU."""

import pytest
import torch

from networks import build_network
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

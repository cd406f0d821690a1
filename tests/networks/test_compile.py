"""torch.compile does not change training; the compiler does not trace the large-kernel convolution."""

import copy
import logging
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from networks import build_network
from networks.Rep3D.rep3d_encoder import rep3d_block

NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler for torch.compile, and found none"
)


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """Reset the compiler, and use the FFT path for every convolution, however small."""
    free = {("cpu", "forward"): 1e9, ("cpu", "backward"): 1e9}
    monkeypatch.setattr("networks.large_kernel_conv.DIRECT_COST", free)
    torch._dynamo.reset()
    counters.clear()


def outputs_and_gradients(network, forward, x):
    network.zero_grad()
    out = forward(x)
    out.square().mean().backward()
    return {"logits": out.detach(), **{name: p.grad.clone() for name, p in network.named_parameters()}}


def assert_trains_alike(network, x, caplog, **options):
    """Assert that compiled training passes give the logits and gradients of an eager one, without a warning.

    In float64, because normalisations over few voxels make the gradients of a small network ill-conditioned.
    """
    network, x = network.double(), x.double()
    keys = list(network.state_dict())
    twin = copy.deepcopy(network)
    expected = outputs_and_gradients(twin, twin, x)
    compiled = torch.compile(network, **options)
    for _ in range(2):  # in training mode BatchNorm uses the batch's statistics: the second pass gives the same
        found = outputs_and_gradients(network, compiled, x)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [record for record in warnings if record.name != "torch.utils.cpp_extension"]  # warns without CUDA
    assert counters["stats"]["unique_graphs"] > 0
    assert len(counters["graph_break"]) == 1  # one kind of break: the convolution
    for name, theirs in expected.items():
        torch.testing.assert_close(found[name], theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())
    assert list(network.state_dict()) == keys


@pytest.mark.filterwarnings("error:.*(Dynamo|nductor):UserWarning")
@NEEDS_COMPILER
def test_a_compiled_block_trains_as_in_eager_mode(caplog):
    torch.manual_seed(0)
    assert_trains_alike(rep3d_block(2, ks=5), torch.randn(1, 2, 8, 8, 8), caplog)


@pytest.mark.filterwarnings("error:.*(Dynamo|nductor):UserWarning")
def test_a_captured_network_trains_as_in_eager_mode(caplog):
    torch.manual_seed(0)
    # Different widths, as in the full-size network: each causes a recompilation, of which dynamo allows eight.
    network = build_network("REP3D", 1, 2, feat_size=(2, 4, 6, 8), kernel_size=5)
    assert_trains_alike(network, torch.randn(1, 1, 32, 32, 32), caplog, backend="aot_eager")  # all but C++

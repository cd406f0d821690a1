"""Every network can be exported by torch.export, ONNX and torch.jit.trace; what is exported computes the same."""

import copy

import pytest
import torch
from smallest import build_narrow, smallest_input
from test_large_kernel_conv import METHODS, PROBLEMS, make_problem, reference
from torch import nn

from engine.runtime.devices import to_device
from networks import NETWORKS
from networks.exporting import is_exported
from networks.large_kernel_conv import LargeKernelConv3d, large_kernel_conv3d

# One name of each class, since the others differ in sizes and masks, and the one of SwinUNETR with other operations.
CLASSES = [*{path: name for name, (path, _) in reversed(NETWORKS.items())}.values(), "HyenaNDUNETR"]
# Those of torch.jit.trace, that it is deprecated and that a trace holds for one size.
IGNORE_TRACE_WARNINGS = pytest.mark.filterwarnings("ignore:.*(torch.jit|trace|__array_wrap__)")
TOLERANCE = 1e-4  # of the largest logit


def make_case(name, **arguments):
    """Build a small network in evaluation mode, its smallest input, and the logits."""
    torch.manual_seed(0)
    network = build_narrow(name, **arguments).eval()
    x = torch.randn(1, 1, *smallest_input(name))
    with torch.no_grad():
        return network, x, network(x)


def assert_near(found, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def run_onnx(model, path, *inputs):
    """Export a module to an ONNX file, and run it on the CPU."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.onnx.export(model, inputs, path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, {name: each.numpy() for name, each in zip(names, inputs, strict=True)})
    return torch.from_numpy(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_export(name):
    network, x, expected = make_case(name)
    exported = torch.export.export(network, (), {"x": x}, strict=False).module()
    assert_near(exported(x=x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_strict_torch_export(name):
    network, x, expected = make_case(name)
    assert_near(torch.export.export(network, (x,), strict=True).module()(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx(name, tmp_path):
    network, x, expected = make_case(name)
    assert_near(run_onnx(network, tmp_path / "network.onnx", x), expected)


@IGNORE_TRACE_WARNINGS
@pytest.mark.parametrize("name", CLASSES)
def test_trace(name):
    network, x, expected = make_case(name)
    assert_near(torch.jit.trace(network, x, check_trace=False)(x), expected)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_deployed_network_in_the_layout_of_a_cpu_takes_any_batch(strict):
    network, x, expected = make_case("REP3D")
    placed = to_device(network.switch_to_deploy(), torch.device("cpu"))
    batch = torch.cat((x, x + 1))
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(placed, (batch,), dynamic_shapes=shapes, strict=strict).module()
    assert_near(exported(x), expected)
    assert_near(exported(torch.cat((batch, x)))[::2], expected.expand(2, -1, -1, -1, -1))


def test_the_masks_of_hyenand_are_limited_as_in_eager_mode():
    """Widths out of bounds, as a step of the optimiser may leave them, are limited by the next call."""
    network, x, _ = make_case("HyenaNDUNETR")
    masks = [module for module in network.modules() if type(module).__name__ == "ExportableMask"]
    assert masks
    for mask in masks:
        mask.std_param.data.mul_(torch.linspace(0.1, 10, mask.std_param.shape[1]))
    before = [mask.std_param.clone() for mask in masks]
    exported = torch.export.export(copy.deepcopy(network), (x,), strict=False).module()
    with torch.no_grad():
        expected = network(x)
    for mask, widths in zip(masks, before, strict=True):
        assert not torch.equal(mask.std_param, widths)
        assert torch.equal(mask.std_param, widths.clamp(mask.min_std, mask.max_std))
    assert_near(exported(x), expected, 1e-7)  # the widths have little effect on the logits


def test_nothing_is_exported_in_ordinary_calls():
    seen = []

    class Reporter(nn.Module):
        def forward(self, x):
            seen.append(is_exported())
            return x + 1

    x = torch.zeros(1)
    Reporter()(x)
    torch.jit.trace(Reporter(), x, check_trace=False)
    torch.export.export(Reporter(), (x,), strict=False)
    assert seen == [False, True, True]


class Convolution(nn.Module):
    """``large_kernel_conv3d`` by one method as a module."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, x, weight, bias):
        return large_kernel_conv3d(x, weight, bias, self.method)


def record(kind, module, inputs):
    """Return the output of the recorded module."""
    if kind == "trace":
        return torch.jit.trace(module, inputs, check_trace=False)(*inputs)
    return torch.export.export(module, inputs, strict=False).module()(*inputs)


@IGNORE_TRACE_WARNINGS
@pytest.mark.parametrize("kind", ["export", "trace"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_convolution_is_exported_by_either_method(problem, method, kind):
    inputs = tuple(each.detach() for each in make_problem(*problem, dtype=torch.float32))
    assert_near(record(kind, Convolution(method).eval(), inputs), reference(*inputs), 1e-5)


@pytest.mark.parametrize("forward", METHODS)
def test_exported_is_the_method_of_the_forward_pass(forward, monkeypatch):
    def choose_method(x, weight, direction):
        return forward if direction == "forward" else "fft"

    monkeypatch.setattr("networks.large_kernel_conv.choose_method", choose_method)
    exported = torch.export.export(LargeKernelConv3d(2, 3), (torch.randn(1, 2, 4, 4, 4),), strict=False)
    assert ("fft" in str(exported)) == (forward == "fft")


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_fft_in_onnx(problem, tmp_path):
    inputs = tuple(each.detach() for each in make_problem(*problem, dtype=torch.float32))
    assert_near(run_onnx(Convolution("fft").eval(), tmp_path / "convolution.onnx", *inputs), reference(*inputs), 1e-5)

"""All networks: forward and backward at the smallest input, parameter counts, comparison with the official code."""

import inspect

import pytest
import torch
from golden import FFT_TOLERANCE, TOLERANCE, assert_reproduces
from smallest import NARROW, build_narrow, build_smallest, smallest_input
from torch import nn

from engine.runtime.devices import to_device
from networks import NETWORKS, build_network
from networks.base import InputSizes, SegmentationNetwork, check_positive
from networks.Rep3D import LRBM

# Name, classes, parameters in millions at 96^3 and one channel, from papers and specifications.
COUNTS = [
    ("REP3D", 16, 65.98),
    ("REP3D_FIXED", 16, 65.83),
    ("REP3D_NONE", 16, 65.83),
    ("3DUXNET", 16, 53.0066),
    ("3DUXNET_K21", 16, 65.848),
    ("3DUXNET_LRBM", 16, 66.00),
    ("3DUXNET_LRBM_K7", 16, 53.0175),
    ("REPUXNET", 16, 65.828),
    ("REPOPT", 16, 65.83),
    ("SwinUNETR", 16, 62.1874),
    ("HyenaNDUNETR", 16, 62.1914),
    ("UNETR", 16, 92.8025),
    ("UNet3D", 4, 4.8085),
    ("nnUNet", 16, 31.1899),
    ("MedNeXt_S", 4, 5.550980),
    ("MedNeXt_B", 4, 10.526372),
    ("MedNeXt_M", 4, 17.549028),
    ("MedNeXt_L", 4, 62.992964),
    ("ResEncUNet", 4, 102.35),
    ("nnFormer", 16, 149.333),
    ("TransBTS", 16, 31.5775),
    ("UNesT", 16, 87.2013),
    ("STUNet_S", 14, 14.55),
    ("STUNet_B", 14, 58.17),
    ("STUNet_L", 14, 440.12),
    ("STUNet_H", 4, 1457.025),
]

every_network = pytest.mark.parametrize("name", NETWORKS)


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def leave_zero_starts(network):
    """Fill layers that start at zero and block gradients: a mask's last convolution, a residual branch's norm."""
    for module in network.modules():
        if isinstance(module, LRBM) and module.generator is not None:
            nn.init.normal_(module.generator[-1].weight, std=0.01)
        elif isinstance(module, nn.InstanceNorm3d) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)


@every_network
def test_forward_and_backward_at_the_smallest_input(name):
    """At few channels; at full width ``test_the_input_is_checked_by_position_and_by_name`` has the output's shape."""
    torch.manual_seed(0)
    size = smallest_input(name)
    with torch.device("meta"):
        arguments = inspect.signature(type(build_narrow(name))).parameters
    # Stochastic depth skips whole blocks at random, which leaves them without gradients.
    network = build_narrow(name, **({"drop_path_rate": 0.0} if "drop_path_rate" in arguments else {}))
    leave_zero_starts(network)
    network = to_device(network, torch.device("cpu"))  # memory layout of training
    logits = network(torch.randn(1, 1, *size))
    assert logits.shape == (1, 3, *size)
    (logits * torch.randn_like(logits)).sum().backward()
    unused = {key for key, _ in network.named_parameters() if key.startswith(network.unused_prefixes)}
    assert {key for key, parameter in network.named_parameters() if not parameter.requires_grad} == unused
    assert {key for key, parameter in network.named_parameters() if parameter.grad is None} == unused
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad.isfinite().all() for parameter in trained)
    dead = [k for k, p in network.named_parameters() if p.requires_grad and p.dim() > 1 and not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize(
    ("name", "size"), [("UNETR", (16, 16, 16)), ("nnFormer", (16, 32, 32))], ids=["UNETR", "nnFormer"]
)
def test_a_single_token_on_the_coarsest_grid(name, size):
    """The smallest accepted size, at which attention among one token gives its queries no gradient."""
    network = build_network(name, 1, 3, size, **NARROW[name])
    logits = network(torch.randn(1, 1, *size))
    logits.square().mean().backward()
    assert logits.shape == (1, 3, *size)
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("name", "classes", "millions"), COUNTS, ids=[name for name, *_ in COUNTS])
def test_parameter_count(name, classes, millions):
    with torch.device("meta"):
        network = build_network(name, 1, classes)
    assert count_parameters(network) / 1e6 == pytest.approx(millions, abs=0.01)


@every_network
def test_all_of_a_network_is_built_on_the_default_device(name):
    with torch.device("meta"):
        network = build_network(name, 1, 3)
    assert {tensor.device.type for tensor in (*network.parameters(), *network.buffers())} == {"meta"}


@every_network
def test_only_stem_and_head_depend_on_channels_and_classes(name):
    def shapes(in_chans, out_chans):
        with torch.device("meta"):
            network = build_smallest(name, in_chans, out_chans)
        return network, {key: value.shape for key, value in network.state_dict().items()}

    network, base = shapes(1, 3)
    wider = {key for key, shape in shapes(2, 3)[1].items() if shape != base[key]}
    assert wider == {key for key, shape in base.items() if key.startswith(network.stem_prefixes) and len(shape) > 1}
    more = {key for key, shape in shapes(1, 4)[1].items() if shape != base[key]}
    assert more <= {key for key in base if key.startswith(network.head_prefixes)}
    assert more


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("REP3D", (96, 96, 90), "roi_size: found 96 x 96 x 90, expected three sides divisible by 16"),
        ("REP3D", (16, 16, 16), "found 16 x 16 x 16.*at least one of them 32 or more"),
        ("3DUXNET", (96, 96), "found 96 x 96,"),
        ("SwinUNETR", (96, 96, 80), "three sides divisible by 32"),
        ("UNETR", (96, 96, 88), "three sides divisible by 16"),
        ("nnFormer", (96, 96, 80), "sides divisible by 16, 32, 32"),
        ("TransBTS", (96, 96, 90), "three sides divisible by 8"),
        ("UNesT", (96, 96, 80), "three sides divisible by 32"),
        ("STUNet_S", (96, 96, 80), "three sides divisible by 32"),
        ("MedNeXt_S", (96, 96, 90), "three sides divisible by 16"),
        ("UNet3D", (-16, 16, -16), "three sides divisible by 16"),
    ],
)
def test_sizes_that_a_network_refuses(name, size, expected):
    with pytest.raises(ValueError, match=expected):
        build_network(name, 1, 3, size)


@pytest.mark.parametrize("name", ["UNETR", "nnFormer", "TransBTS", "UNesT"])
def test_networks_tied_to_their_construction_size_refuse_another(name):
    network = build_narrow(name)
    with pytest.raises(ValueError, match=r"input size: found 96 x 96 x 96, expected .*, the size the network"):
        network(torch.zeros(1, 1, 96, 96, 96))


@every_network
def test_the_input_is_checked_by_position_and_by_name(name):
    size = smallest_input(name)
    with torch.device("meta"):
        network = build_smallest(name, deploy=True)
        image, other = torch.zeros(1, 1, *size), torch.zeros(1, 2, *size)
    assert network(x=image).shape == network(image).shape == (1, 3, *size)
    for call in (lambda: network(other), lambda: network(x=other)):
        with pytest.raises(ValueError, match=r"input: found shape \(1, 2, .*expected \(N, 1, D, H, W\)"):
            call()


@every_network
def test_an_empty_batch_gives_empty_logits_and_no_gradients(name):
    network, size = build_narrow(name), smallest_input(name)
    empty = torch.empty(0, 1, *size)
    logits = network(x=empty)
    assert logits.shape == (0, 3, *size)
    logits.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in network.parameters())
    assert all(buffer.isfinite().all() for buffer in network.buffers())
    with torch.no_grad():
        assert network.eval()(empty).shape == (0, 3, *size)


def test_calls_with_no_input_or_several_are_refused():
    network, image = build_smallest("UNet3D"), torch.zeros(1, 1, 16, 16, 32)
    for inputs, named in (((), {}), ((image, image), {}), ((image,), {"x": image}), ((), {"image": image})):
        with pytest.raises(TypeError, match=r"^forward\(\) .* argument"):
            network(*inputs, **named)
    with pytest.raises(TypeError, match="found dict, expected a tensor"):
        network({"image": image})


@pytest.mark.parametrize(
    ("sizes", "smallest"), [(InputSizes(8), (8, 8, 16)), (InputSizes((1, 4, 4), least_coarse=1), (1, 4, 4))]
)
def test_the_smallest_size_is_accepted(sizes, smallest):
    assert sizes.smallest == smallest
    sizes.check(smallest)


def test_input_sizes_with_one_divisor_per_axis():
    sizes = InputSizes((1, 32, 32), least_coarse=1)
    sizes.check((7, 32, 64))
    with pytest.raises(ValueError, match="crop: found 7 x 32 x 48, expected sides divisible by 1, 32, 32"):
        sizes.check((7, 32, 48), "crop")


class Toy(SegmentationNetwork):
    """Minimal network of a user."""

    stem_prefixes = ("down.weight",)
    head_prefixes = ("up.",)

    def __init__(self, in_chans=1, out_chans=16):
        super().__init__()
        check_positive(in_chans=in_chans, out_chans=out_chans)
        self.in_chans, self.out_chans = in_chans, out_chans
        self.input_sizes = InputSizes(4)
        self.down = nn.Conv3d(in_chans, 8, kernel_size=4, stride=4)
        self.norm = nn.InstanceNorm3d(8)
        self.up = nn.ConvTranspose3d(8, out_chans, kernel_size=4, stride=4)

    def forward(self, x):
        return self.up(self.norm(self.down(x)).relu())


def test_a_new_network_needs_a_class_and_one_line(monkeypatch):
    monkeypatch.setitem(NETWORKS, "Toy", (f"{__name__}:Toy", {}))
    test_forward_and_backward_at_the_smallest_input("Toy")
    test_all_of_a_network_is_built_on_the_default_device("Toy")
    test_only_stem_and_head_depend_on_channels_and_classes("Toy")
    test_the_input_is_checked_by_position_and_by_name("Toy")


# Comparison with the official code; for nnFormer, TransBTS, UNesT and STU-Net see their own test files.


def test_3d_uxnet_reproduces_the_official_logits():
    assert_reproduces("3DUXNET", build_network("3DUXNET", 1, 16), FFT_TOLERANCE)


def test_repuxnet_reproduces_the_official_logits():
    assert_reproduces("REPUXNET", build_network("REPUXNET", 1, 16, deploy=True), FFT_TOLERANCE)


@pytest.mark.parametrize(("size", "kernel_size"), [("S", 3), ("B", 3), ("L", 5)])
def test_mednext_reproduces_the_official_logits(size, kernel_size):
    network = build_network(f"MedNeXt_{size}", 1, 4, kernel_size=kernel_size)
    assert_reproduces(f"MedNeXt_{size}_k{kernel_size}", network, TOLERANCE)

"""STU-Net: official logits, published sizes, strides of a plan, and the unused heads of the coarser stages."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden import assert_reproduces
from torch import nn

from networks import NETWORKS
from networks.STUNet import STUNet

TINY = {"out_chans": 3, "feat_size": (2, 3, 4, 5, 6, 7)}
ANISOTROPIC = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 1, 2))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def leaves_without_gradient(network, shape):
    """Back-propagate a random weighting of the logits; return the names of parameters without or with zero gradient."""
    logits = network.train()(torch.randn(shape))
    (logits * torch.randn_like(logits)).sum().backward()
    # The gradient of a bias before an instance norm is rounding noise, which may be zero.
    return {name for name, p in network.named_parameters() if p.grad is None or (p.dim() > 1 and not p.grad.any())}


# Official implementation


def test_reproduces_the_official_logits():
    assert_reproduces("STUNet_S", STUNet(out_chans=14))


@pytest.mark.parametrize(
    ("variant", "out_chans", "millions"), [("S", 14, 14.551), ("B", 14, 58.17), ("L", 14, 440.12), ("H", 4, 1457.025)]
)
def test_published_sizes(variant, out_chans, millions):
    with torch.device("meta"):
        network = STUNet(out_chans=out_chans, **NETWORKS[f"STUNet_{variant}"][1])
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.5 * 10 ** -len(str(millions).partition(".")[2]))


def test_default_is_the_small_variant():
    with torch.device("meta"):
        default, small = STUNet().state_dict(), STUNet(**NETWORKS["STUNet_S"][1]).state_dict()
    assert {key: value.shape for key, value in default.items()} == {key: value.shape for key, value in small.items()}


def test_normalisation_and_activation():
    norms = [module for module in STUNet(**TINY).modules() if isinstance(module, nn.InstanceNorm3d)]
    assert len(norms) == 22
    assert all(norm.eps == 1e-5 and norm.affine and not norm.track_running_stats for norm in norms)
    assert {m.negative_slope for m in STUNet(**TINY).modules() if isinstance(m, nn.LeakyReLU)} == {0.01}


def test_initialisation():
    network = STUNet()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert len(convolutions) == 43
    assert not any(convolution.bias.any() for convolution in convolutions)
    for convolution in convolutions:
        weight = convolution.weight
        if weight.numel() > 10_000:
            expected = math.sqrt(2 / (1 + 0.01**2) / weight[0].numel())
            assert weight.std().item() == pytest.approx(expected, rel=0.03)


def test_upsampling_is_nearest_interpolation_then_convolution():
    upsample = STUNet(**TINY, strides=ANISOTROPIC).upsample_layers[0]
    x = torch.randn(2, 7, 2, 3, 4)
    specified = upsample.conv(F.interpolate(x, scale_factor=(2.0, 1.0, 2.0), mode="nearest"))
    torch.testing.assert_close(upsample(x), specified)


def test_only_first_blocks_of_stages_project():
    network = STUNet(**TINY, depths=(1, 2, 3, 1, 2, 3))
    for stages, depths in (
        (network.conv_blocks_context, [1, 2, 3, 1, 2, 3]),
        (network.conv_blocks_localization, [2, 1, 3, 2, 1]),  # depths of the encoder stages at the same resolution
    ):
        assert [[block.conv3 is not None for block in stage] for stage in stages] == [
            [True] + [False] * (depth - 1) for depth in depths
        ]


# Sizes


def test_anisotropic_strides():
    network = STUNet(in_chans=2, **TINY, strides=ANISOTROPIC)
    assert network.input_sizes.divisors == (16, 16, 32)
    assert network(torch.randn(1, 2, 16, 32, 64)).shape == (1, 3, 16, 32, 64)
    grids = []
    for stage in network.conv_blocks_context:
        stage.register_forward_hook(lambda _module, _inputs, output: grids.append(tuple(output.shape[2:])))
    network(torch.randn(1, 2, 16, 32, 32))
    assert grids == [(16, 32, 32), (16, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2), (1, 2, 1)]


@pytest.mark.parametrize("shape", [(1, 2, 64, 64, 64), (1, 1, 48, 64, 64), (1, 1, 32, 32, 32), (1, 64, 64, 64)])
def test_invalid_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"^input.*: found .*, expected "):
        STUNet(**TINY)(torch.zeros(shape))


@pytest.mark.parametrize(
    "invalid",
    [
        {"in_chans": 0},
        {"out_chans": 0},
        {"feat_size": (4, 4, 4, 4, 4)},
        {"feat_size": (4, 4, 4, 4, 4, 0)},
        {"depths": 0},
        {"depths": (1, 1, 1, 1, 1)},
        {"strides": ((2, 2, 2),) * 6},
        {"strides": ((2, 2),) * 5},
        {"strides": ((2, 2, 0),) * 5},
    ],
    ids=str,
)
def test_invalid_arguments(invalid):
    with pytest.raises(ValueError, match=f"^{next(iter(invalid))}: found .*, expected "):
        STUNet(**invalid)


# Heads


def test_heads_are_listed_coarsest_first():
    assert [head.in_channels for head in STUNet(**TINY).seg_outputs] == [6, 5, 4, 3, 2]


def test_training_and_evaluation_mode_give_the_same_logits():
    network, x = STUNet(**TINY), torch.randn(1, 1, 32, 32, 64)
    assert torch.equal(network.train()(x), network.eval()(x))


@pytest.mark.parametrize("depths", [1, 2])
def test_only_the_unused_heads_get_no_gradient(depths):
    network = STUNet(**TINY, depths=depths)
    unused = {f"seg_outputs.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert {name for name, parameter in network.named_parameters() if not parameter.requires_grad} == unused
    assert leaves_without_gradient(network, (1, 1, 64, 64, 64)) == unused


def test_prefixes():
    shapes, other = (
        {key: tuple(value.shape) for key, value in STUNet(in_chans=in_chans, **tiny).state_dict().items()}
        for in_chans, tiny in ((1, TINY), (11, {**TINY, "out_chans": 13}))
    )
    changed = {key for key in shapes if shapes[key] != other[key]}
    assert changed == {key for key in shapes if key.startswith(STUNet.stem_prefixes + STUNet.head_prefixes)}
    assert {key for key in changed if other[key][1:2] == (11,)} == set(STUNet.stem_prefixes)

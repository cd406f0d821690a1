"""nnFormer: official logits; windows, shifts and padding on any grid; stochastic depth."""

import itertools

import pytest
import torch
from golden import assert_reproduces
from torch import nn

from networks.nnFormer import nnFormer
from networks.nnFormer.window_attention import WindowAttention, WindowBlock

SMALL = {"out_chans": 3, "roi_size": (32, 64, 64), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small_nnformer(**options):
    return nnFormer(**{**SMALL, **options})


def blocks_of(module):
    return [child for child in module.modules() if isinstance(child, WindowBlock)]


def test_official_logits_are_reproduced():
    assert_reproduces("nnFormer", nnFormer())


# Windows


def test_windows_and_shifts_at_96_voxels():
    network = small_nnformer(roi_size=(96, 96, 96))

    def windows(layers):
        return [[(block.attn.window, block.attn.shift) for block in layer.blocks] for layer in layers]

    expected = [[(4, 0), (4, 2)], [(4, 0), (4, 2)], [(6, 0), (6, 0)], [(3, 0), (3, 0)]]
    assert windows(network.model_down.layers) == expected
    assert windows(network.decoder.layers) == expected[:3]
    assert [[block.attn.cross for block in layer.blocks] for layer in network.decoder.layers] == [[True, False]] * 3


def attend_voxel_by_voxel(attention, x, context=None):
    """Compute the attention without rolling, windows or masks: a token attends to those in its own shifted cell."""
    grid, side, heads = x.shape[1:4], attention.window, attention.heads
    padded = [-(-length // side) * side for length in grid]

    def pad(tokens):
        whole = torch.zeros(*padded, tokens.shape[-1])
        whole[: grid[0], : grid[1], : grid[2]] = tokens[0]
        return whole

    if context is None:
        query, key, value = attention.qkv(pad(x)).chunk(3, dim=-1)
    else:
        query, (key, value) = pad(x), attention.kv(pad(context)).chunk(2, dim=-1)
    cells = {}
    for voxel in itertools.product(*map(range, padded)):
        cells.setdefault(tuple((i - attention.shift) // side for i in voxel), []).append(voxel)
    result = torch.zeros_like(query)
    for cell in cells.values():
        for q in cell:
            offsets = [[i - j + side - 1 for i, j in zip(q, k, strict=True)] for k in cell]
            rows = [a * (3 * side - 1) + b * (2 * side - 1) + c for a, b, c in offsets]
            bias = attention.relative_position_bias_table[rows]  # (keys, heads)
            keys = torch.stack([key[k] for k in cell]).unflatten(-1, (heads, -1))
            values = torch.stack([value[k] for k in cell]).unflatten(-1, (heads, -1))
            logits = (query[q].unflatten(-1, (heads, -1)) * keys).sum(-1) * keys.shape[-1] ** -0.5 + bias
            result[q] = (logits.softmax(0)[..., None] * values).sum(0).flatten()
    return attention.proj(result[: grid[0], : grid[1], : grid[2]])[None]


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize(
    ("grid", "window", "shifted", "expected"),
    [
        ((5, 4, 7), 3, True, (3, 1)),
        ((5, 4, 7), 3, False, (3, 0)),
        ((6, 2, 5), 4, True, (2, 0)),  # the smallest side is the window
        ((4, 8, 4), 4, True, (4, 0)),
        ((5, 8, 6), 4, True, (4, 2)),
    ],
)
def test_attention_on_any_grid(grid, window, shifted, expected, cross):
    attention = WindowAttention(grid, 6, 2, window, shifted, cross)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, context = torch.randn(2, 1, *grid, 6)
    inputs = (x, context) if cross else (x,)
    assert (attention.window, attention.shift) == expected
    with torch.no_grad():
        torch.testing.assert_close(attention(*inputs), attend_voxel_by_voxel(attention, *inputs), atol=1e-5, rtol=1e-5)


def test_shift_masks_are_not_saved_but_move_with_the_network():
    network = small_nnformer().double()
    masks = {name: buffer for name, buffer in network.named_buffers() if name.endswith("shift_mask")}
    assert len(masks) == 4  # stages 0 and 1, of encoder and decoder
    assert all(mask.dtype == torch.float64 and set(mask.unique().tolist()) == {-100, 0} for mask in masks.values())
    assert not masks.keys() & network.state_dict().keys()


# Training and evaluation


def test_layer_normalisation_eps():
    norms = [module for module in small_nnformer().modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 4 + 2 * 14 + 3 + 4 + 3  # embedding, blocks, down-sampling, skips, up-sampling
    assert {norm.eps for norm in norms} == {1e-5}


def test_every_parameter_learns():
    network = small_nnformer(drop_path_rate=0).train()
    network(torch.randn(1, 1, 32, 64, 64)).square().mean().backward()
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_stochastic_depth_grows_from_the_first_block_and_towards_the_finest_decoder_stage():
    network = small_nnformer(drop_path_rate=0.35)
    rates = [block.drop_path.drop_prob for block in blocks_of(network.model_down)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    rates = [block.drop_path.drop_prob for block in blocks_of(network.decoder)]
    assert rates == pytest.approx([0.28, 0.35, 0.14, 0.21, 0, 0.07])


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_stochastic_depth_leaves_out_both_branches(cross):
    block = WindowBlock((4, 4, 4), 6, 2, window=2, shifted=True, cross=cross, drop_path=1.0)
    x, skip = torch.randn(2, 1, 6, 4, 4, 4)
    inputs = (x, skip) if cross else (x,)
    with torch.no_grad():
        torch.testing.assert_close(block.train()(*inputs), sum(inputs))
        assert not torch.allclose(block.eval()(*inputs), sum(inputs), atol=1e-3)


def test_stochastic_depth_acts_in_training_only():
    network = small_nnformer(drop_path_rate=0.9)
    x = torch.randn(1, 1, 32, 64, 64)
    with torch.no_grad():
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


# Sizes


@pytest.mark.parametrize(
    ("patch_size", "strides", "roi_size"),
    [
        ((2, 4, 4), [(2, 2, 2), (1, 2, 2)], (16, 32, 64)),
        ((4, 4, 4), [(2, 2, 2), (2, 2, 2)], (32, 64, 32)),
        ((1, 4, 2), [(1, 2, 2), (1, 2, 1)], (16, 64, 16)),
    ],
)
def test_patch_sizes(patch_size, strides, roi_size):
    network = small_nnformer(patch_size=patch_size, roi_size=roi_size, in_chans=2).eval()
    embedding = network.model_down.patch_embed
    assert [embedding.proj1.conv1.stride, embedding.proj2.conv1.stride] == strides
    assert network.final[0].up.kernel_size == network.final[0].up.stride == patch_size
    assert network.input_sizes.divisors == tuple(8 * side for side in patch_size)
    with torch.no_grad():
        assert network(torch.randn(1, 2, *roi_size)).shape == (1, 3, *roi_size)


def test_input_of_another_size_is_refused():
    with pytest.raises(ValueError, match="input size: found 64 x 64 x 64, expected 32 x 64 x 64, the size the network"):
        small_nnformer()(torch.randn(1, 1, 64, 64, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 0}, "in_chans: found 0, expected a positive number"),
        ({"out_chans": 0}, "out_chans: found 0, expected a positive number"),
        ({"roi_size": (24, 64, 64)}, "roi_size: found 24 x 64 x 64, expected sides divisible by 16, 32, 32"),
        ({"roi_size": (64, 64)}, "roi_size: found 64 x 64, expected sides divisible by 16, 32, 32"),
        ({"embed_dim": 25}, "embed_dim: found 25, expected an even positive number"),
        ({"depths": (2, 2, 2)}, r"depths: found \(2, 2, 2\), expected 4 positive numbers"),
        ({"depths": (2, 2, 0, 2)}, r"depths: found \(2, 2, 0, 2\), expected 4 positive numbers"),
        ({"window_sizes": (4, 4, 8, 0)}, r"window_sizes: found \(4, 4, 8, 0\), expected 4 positive numbers"),
        ({"num_heads": (1, 2, 4)}, r"num_heads: found \(1, 2, 4\), expected 4 positive numbers"),
        ({"num_heads": (1, 2, 5, 8)}, r"num_heads: found \(1, 2, 5, 8\), expected divisors of .* \(24, 48, 96, 192\)"),
        ({"patch_size": (2, 3, 4)}, r"patch_size: found \(2, 3, 4\), expected three of 1, 2 and 4"),
        ({"patch_size": (4, 4)}, r"patch_size: found \(4, 4\), expected three of 1, 2 and 4"),
        ({"drop_path_rate": 1.0}, "drop_path_rate: found 1.0, expected at least 0 and less than 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate: found -0.1, expected at least 0 and less than 1"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        small_nnformer(**options)

"""UNesT: official logits; training, initialisation, and inputs that are not cubes."""

import pytest
import torch
from golden import assert_reproduces
from torch import nn

from networks.UNesT import UNesT
from networks.UNesT.nest import BlockAttention, NestLevel, TransformerLayer

SIZE = (32, 32, 64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tiny_unest(**options):
    small = {"feature_size": 4, "embed_dim": (16, 32, 64), "depths": (1, 1, 2), "num_heads": (1, 2, 4)}
    return UNesT(**{"out_chans": 3, "roi_size": SIZE, **small, **options})


def official_unest():
    """Build UNesT-B on the meta device."""
    with torch.device("meta"):
        return UNesT()


def of_kind(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def test_golden():
    assert_reproduces("UNesT", UNesT())


# The golden logits would not reveal a wrong eps or wrong rates of stochastic depth.


def test_layer_norm_eps():
    assert [norm.eps for norm in of_kind(official_unest(), nn.LayerNorm)] == [1e-6] * (2 * 12 + 2 + 1)


def test_stochastic_depth_is_linear_over_the_layers():
    rates = [layer.drop_path.drop_prob for layer in of_kind(official_unest(), TransformerLayer)]
    assert rates == pytest.approx([0.5 * layer / 11 for layer in range(12)])


def test_stochastic_depth_drops_branches_of_single_samples_in_training_only():
    layer = TransformerLayer(8, num_heads=2, drop_path=0.5)
    x = torch.randn(200, 1, 4, 8)
    skipped = (layer(x) == x).flatten(1).all(dim=1)
    assert 25 <= skipped.sum() <= 75  # both branches are skipped for one sample in four
    assert not (layer.eval()(x) == x).flatten(1).all(dim=1).any()


def test_stochastic_depth_is_off_in_evaluation():
    network = tiny_unest(drop_path_rate=0.9)
    x = torch.randn(1, 1, *SIZE)
    with torch.no_grad():
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_a_large_stochastic_depth_trains_on_single_samples():
    network = tiny_unest(drop_path_rate=0.95)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    x, target = torch.randn(1, 1, *SIZE), torch.randint(3, (1, *SIZE))
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), target)
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_initialisation_of_the_encoder():
    encoder = tiny_unest().nestViT
    for level in encoder.levels:
        assert level.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    for layer in of_kind(encoder, nn.Linear | nn.Conv3d):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert not layer.bias.any()


def test_inputs_that_are_not_cubes():
    network = tiny_unest(in_chans=2, drop_path_rate=0)
    assert [tuple(level.pos_embed.shape) for level in network.nestViT.levels] == [
        (1, blocks**3, 2 * 2 * 4, dim) for blocks, dim in ((4, 16), (2, 32), (1, 64))
    ]
    logits = network(torch.randn(2, 2, *SIZE))
    assert logits.shape == (2, 3, *SIZE)
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_attention_stays_within_blocks():
    level = NestLevel(None, 8, num_heads=2, drop_paths=[0, 0], blocks=4, edges=(1, 2, 3)).eval()
    x = torch.randn(1, 8, 4, 8, 12)
    changed = x.clone()
    changed[0, :, 2, 3, 7] += 1
    with torch.no_grad():
        difference = (level(changed) - level(x)).abs().amax(dim=(0, 1)) > 0
    block = torch.zeros(4, 8, 12, dtype=torch.bool)
    block[2:3, 2:4, 6:9] = True
    assert torch.equal(difference, block)


def test_heads_are_merged_with_the_head_fastest():
    attention = BlockAttention(4, num_heads=2)
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.bias.copy_(torch.arange(12.0))  # values 8 to 11, two per head
        attention.proj.weight.copy_(torch.eye(4))
        attention.proj.bias.zero_()
        assert attention(torch.randn(1, 1, 5, 4))[0, 0, 0].tolist() == pytest.approx([8, 10, 9, 11])


@pytest.mark.parametrize("shape", [(1, 2, *SIZE), (1, *SIZE), (1, 1, 64, 32, 32), (1, 1, 64, 64, 64)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"found .*, expected "):
        tiny_unest()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 0}, "in_chans: found 0, expected a positive number"),
        ({"out_chans": 0}, "out_chans: found 0, expected a positive number"),
        ({"feature_size": 0}, "feature_size: found 0, expected a positive number"),
        ({"roi_size": (32, 32, 48)}, "roi_size: found 32 x 32 x 48, expected three sides divisible by 32"),
        ({"roi_size": (32, 32, 32)}, "roi_size: found 32 x 32 x 32, expected .* 64 or more"),
        ({"roi_size": (64, 64)}, "roi_size: found 64 x 64, expected three sides"),
        ({"embed_dim": (16, 32)}, r"embed_dim: found \(16, 32\), expected 3 positive numbers"),
        ({"depths": (1, 0, 1)}, r"depths: found \(1, 0, 1\), expected 3 positive numbers"),
        ({"num_heads": (1, 2, -4)}, r"num_heads: found \(1, 2, -4\), expected 3 positive numbers"),
        ({"num_heads": (1, 2, 5)}, r"num_heads: found \(1, 2, 5\), expected divisors of embed_dim \(16, 32, 64\)"),
        ({"drop_path_rate": 1}, "drop_path_rate: found 1, expected"),
        ({"drop_path_rate": -0.1}, "drop_path_rate: found -0.1, expected"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_unest(**options)

"""TransBTS: official logits; training mode, unused modules, attributes and arguments."""

import pytest
import torch
from golden import assert_reproduces, draw_weights
from torch import nn

from networks.TransBTS import TransBTS

SMALL = {"out_chans": 3, "roi_size": (16, 16, 32), "embed_dim": 32, "num_heads": 4, "num_layers": 1, "mlp_dim": 64}
UNUSED = {"linear_encoding.weight", "linear_encoding.bias", "pre_head_ln.weight", "pre_head_ln.bias"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.randn(1, 1, 16, 16, 32)


def small_network(**options):
    return TransBTS(**{**SMALL, **options})


def modules(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def shapes(network):
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


# Parity


def test_reproduces_the_official_logits():
    assert_reproduces("TransBTS", TransBTS())


def test_normalisations():
    network = small_network()
    groups, batches = modules(network, nn.GroupNorm), modules(network, nn.BatchNorm3d)
    assert len(groups) == 18  # two in each of the encoder's nine blocks
    assert all(norm.num_groups == 8 for norm in groups)
    assert len(batches) == 11  # two in each of the decoder's five blocks, and one before the tokens
    layers = modules(network, nn.LayerNorm)
    assert len(layers) == 3  # two in the one transformer layer, and the unused one
    assert {norm.eps for norm in (*groups, *batches, *layers)} == {1e-5}
    assert {norm.momentum for norm in batches} == {0.1}


def test_position_embeddings_start_at_zero_and_matter(x):
    network = small_network().eval()
    embeddings = network.position_encoding.position_embeddings
    assert embeddings.shape == (1, 2 * 2 * 4, 32)
    assert torch.count_nonzero(embeddings) == 0
    before = network(x)
    nn.init.normal_(embeddings)
    assert not torch.allclose(network(x), before, rtol=1e-2)


def test_unequal_sides():
    network = small_network(roi_size=(16, 24, 32)).eval()
    assert network(torch.randn(2, 1, 16, 24, 32)).shape == (2, 3, 16, 24, 32)
    network.transformer = nn.Identity()
    grid = torch.randn(2, 32, 2, 3, 4)
    assert torch.equal(network._attend(grid), grid)  # every token returns to its place


# The two modules that the official network does not use


def test_without_official_keys_only_the_unused_ones_are_missing(x):
    full, lean = small_network().eval(), small_network(official_keys=False).eval()
    assert full.state_dict().keys() - lean.state_dict().keys() == UNUSED
    assert lean.state_dict().keys() <= full.state_dict().keys()
    weights = draw_weights(full.state_dict())
    full.load_state_dict(weights)
    lean.load_state_dict({key: value for key, value in weights.items() if key not in UNUSED})
    assert torch.equal(full(x), lean(x))


@pytest.mark.parametrize("official_keys", [True, False])
def test_exactly_the_unused_parameters_are_frozen_and_without_gradient(x, official_keys):
    network = small_network(official_keys=official_keys)
    nn.init.normal_(network.position_encoding.position_embeddings)
    network(x).square().mean().backward()
    parameters = dict(network.named_parameters())
    unused = UNUSED if official_keys else set()
    assert {name for name, parameter in parameters.items() if not parameter.requires_grad} == unused
    assert {name for name, parameter in parameters.items() if parameter.grad is None} == unused
    # The gradient of biases before a batch normalisation is rounding noise.
    assert all(torch.count_nonzero(parameter.grad) for name, parameter in parameters.items() if name not in unused)


def test_channels_and_classes_change_only_stem_and_head():
    one, four = small_network(), small_network(in_chans=4, out_chans=5)
    assert shapes(four)["linear_encoding.weight"] == (32, 4 * 128)  # as in the official network of four channels
    assert shapes(four).keys() == shapes(one).keys()
    changed = {key for key, shape in shapes(one).items() if shapes(four)[key] != shape}
    assert changed == {"Unet.InitConv.conv.weight", "linear_encoding.weight", "endconv.weight", "endconv.bias"}
    assert all(key.startswith((*TransBTS.stem_prefixes, *TransBTS.head_prefixes)) for key in changed)


def test_official_four_channel_network_has_the_published_size():
    with torch.device("meta"):
        network = TransBTS(in_chans=4, out_chans=4, roi_size=(128, 128, 128))
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(32.988e6, abs=500)


# Dropout


def test_predictions_repeat(x):
    network = small_network(dropout=0.5, stem_dropout=0.5).eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(("dropout", "stem_dropout"), [(0.5, 0.0), (0.0, 0.5), (0.0, 0.0)])
def test_each_dropout_acts_in_training(x, dropout, stem_dropout):
    network = small_network(dropout=dropout, stem_dropout=stem_dropout).train()
    assert torch.equal(network(x), network(x)) == (dropout == stem_dropout == 0)


def test_stem_drops_whole_channels(x):
    network = small_network(stem_dropout=0.5)
    kept = (network.Unet.InitConv(x) != 0).float().mean(dim=(0, 2, 3, 4))
    assert set(kept.tolist()) == {0, 1}


def test_embedded_tokens_are_dropped():
    network = small_network(dropout=0.5)
    network.transformer = nn.Identity()
    assert (network._attend(torch.ones(2, 32, 2, 2, 4)) == 0).float().mean() == pytest.approx(0.5, abs=0.1)


def test_attention_drops_weights_and_output_and_its_branch_once_more():
    branch = small_network(dropout=0.5).transformer.net[0].fn
    tokens = torch.randn(2, 16, 32)
    assert (branch.fn(tokens) == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (branch(tokens) == 0).float().mean() == pytest.approx(0.75, abs=0.1)
    branch.fn.dropout.eval()  # the output's; the weights' follows the attention's own mode
    assert not torch.equal(branch.fn(tokens), branch.fn(tokens))
    branch.eval()
    assert torch.equal(branch(tokens), branch(tokens))


def test_official_rates():
    with torch.device("meta"):
        network = TransBTS(roi_size=(16, 16, 32))
    assert [module.p for module in modules(network, nn.Dropout3d)] == [0.2]
    # One on the embedded tokens; two in each attention branch and two in each perceptron.
    assert [module.p for module in modules(network, nn.Dropout)] == [0.1] * (1 + 4 * 4)


# Arguments


def test_every_size_argument_changes_the_network():
    base = shapes(small_network())
    for option, value in {
        "roi_size": (16, 16, 16),
        "base_channels": 8,
        "embed_dim": 16,
        "num_layers": 2,
        "mlp_dim": 32,
    }.items():
        assert shapes(small_network(**{option: value})) != base, option


def test_num_heads_changes_the_output(x):
    network, other = small_network().eval(), small_network(num_heads=2).eval()
    other.load_state_dict(network.state_dict())
    assert not torch.allclose(network(x), other(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 0}, "in_chans: found 0, expected a positive number"),
        ({"out_chans": 0}, "out_chans: found 0, expected a positive number"),
        ({"num_heads": 0}, "num_heads: found 0, expected a positive number"),
        ({"num_layers": 0}, "num_layers: found 0, expected a positive number"),
        ({"mlp_dim": -1}, "mlp_dim: found -1, expected a positive number"),
        ({"base_channels": 12}, "base_channels: found 12, expected a positive multiple of 8"),
        ({"embed_dim": 30}, "embed_dim: found 30, expected a positive multiple of 4"),
        ({"dropout": 1.0}, r"dropout: found 1\.0, expected at least 0 and less than 1"),
        ({"stem_dropout": -0.1}, r"stem_dropout: found -0\.1, expected at least 0 and less than 1"),
        ({"roi_size": (20, 16, 16)}, "roi_size: found 20 x 16 x 16, expected three sides divisible by 8"),
        ({"roi_size": (8, 8, 8)}, "roi_size: found 8 x 8 x 8, expected .*at least one of them 16 or more"),
        ({"roi_size": (96, 96)}, "roi_size: found 96 x 96, expected three sides"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        small_network(**options)


@pytest.mark.parametrize("shape", [(1, 2, 16, 16, 32), (1, 16, 16, 32), (1, 1, 16, 32, 16)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"^input"):
        small_network()(torch.zeros(shape))

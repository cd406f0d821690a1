"""Rep3D: parameter counts of the paper, learned masks, gradients, and forwards without side effects."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_rep3d import MASKS, every_mask, randomise, relative_error, tiny_rep3d
from torch import nn

from networks.large_kernel_conv import large_kernel_conv3d
from networks.Rep3D import LRBM, REP3D, compute_distance_prior, rep3d_block

GENERATED = ("shared", "per_channel", "additive", "replicate")
learned_mask = pytest.mark.parametrize("mask", [MASKS[name] for name in GENERATED], ids=GENERATED)

# Names within each block's LRBM at the default depth; only the per-channel form has a bias before the normalisation.
EARLIER_GENERATOR_LAYERS = {f".generator.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")}
LAST_GENERATOR_LAYER = {".generator.3.weight", ".generator.3.bias"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# Sizes


@pytest.mark.parametrize(
    ("options", "millions"),
    [({"mask": "learned"}, 65.98), ({"mask": "fixed"}, 65.83), ({"mask": "learned", "per_channel": True}, 66.82)],
)
def test_parameter_count_of_the_paper(options, millions):
    with torch.device("meta"):
        network = REP3D(in_chans=1, out_chans=16, **options)
    assert count(network) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2 * 7**3 + 1 + 2 * 9**3),
        ({"generator_depth": 1}, 7**3 + 1),
        ({"generator_depth": 3}, 3 * 7**3 + 1 + 2 * 2 * 9**3),
        ({"generator_ks": 3}, 2 * 3**3 + 1 + 2 * 9**3),
        ({"per_channel": True}, 2 * 6 * (7**3 + 1) + 2 * 6),
        ({"learned": False}, 0),
        ({"correction": "additive"}, 2 * 7**3 + 1 + 2 * 9**3),
        ({"correction": "free"}, 9**3),
        ({"correction": "free", "per_channel": True}, 6 * 9**3),
        ({"learned": False, "learn_beta": True}, 1),
    ],
)
def test_generator_parameters_counted_by_hand(options, expected):
    assert count(LRBM(6, 9, **options)) == expected


# Prior and mask


def test_prior_is_the_reciprocal_of_distance():
    prior = compute_distance_prior(5, beta=2.0)
    assert prior.shape == (5, 5, 5)
    assert prior[2, 2, 2] == 1
    assert prior[2, 2, 3] == pytest.approx(2 / 3)
    assert prior[1, 2, 3] == pytest.approx(2 / (math.sqrt(2) + 2))
    assert prior[0, 0, 0] == pytest.approx(2 / (math.sqrt(12) + 2))
    for symmetric in (prior.flip(0), prior.flip(1), prior.flip(2), prior.permute(2, 0, 1), prior.transpose(0, 1)):
        assert torch.equal(prior, symmetric)


def test_prior_of_one_voxel_is_one():
    assert compute_distance_prior(1).tolist() == [[[1.0]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4,), "ks: found 4"),
        ((0,), "ks: found 0"),
        *(((5, beta), "beta: found") for beta in (0, -1, math.inf, math.nan)),
    ],
)
def test_prior_refuses_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        compute_distance_prior(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"per_channel": True}, {"learned": False}, {"generator_depth": 1}, {"beta": 3.0}),
        *({"correction": "additive"}, {"correction": "free"}, {"generator_padding": "replicate"}, {"mask_floor": 0.05}),
        *({"learn_beta": True}, {"learn_beta": True, "learned": False, "per_channel": True}),
    ],
)
def test_mask_starts_exactly_at_the_prior(options):
    mask = LRBM(6, 7, **options)()
    assert mask.shape == (6 if options.get("per_channel") else 1, 1, 7, 7, 7)
    assert torch.equal(mask, compute_distance_prior(7, options.get("beta", 1.0)).expand_as(mask))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per_channel"])
@pytest.mark.parametrize("correction", ["gated", "additive"])
def test_mask_is_the_formula_of_the_paper(depth, per_channel, correction):
    options = {"generator_depth": depth, "per_channel": per_channel, "correction": correction}
    lrbm = randomise(LRBM(6, 9, generator_ks=5, **options)).double()
    parameters = iter(lrbm.parameters())
    maps = 6 if per_channel else 1
    prior = lrbm.prior.expand(1, maps, 9, 9, 9)
    value = prior
    for layer in range(depth):
        biased = per_channel or layer == depth - 1
        value = F.conv3d(value, next(parameters), next(parameters) if biased else None, padding=2, groups=maps)
        if layer < depth - 1 and per_channel:
            value = F.layer_norm(value.movedim(1, -1), (maps,), next(parameters), next(parameters)).movedim(-1, 1)
        elif layer < depth - 1:
            value = F.layer_norm(value, (9, 9, 9), next(parameters), next(parameters))
        value = value.sigmoid() if layer < depth - 1 else value
    if correction == "gated":
        value = prior * torch.tanh(value / math.sqrt(5**3))
    assert relative_error(lrbm(), (prior + value).transpose(0, 1)) < 1e-6


def test_a_gated_mask_stays_between_zero_and_twice_the_prior():
    lrbm = LRBM(2, 9)
    for sign in (-1, 1):
        nn.init.constant_(lrbm.generator[-1].weight, sign * 1e3)
        ratio = lrbm() / lrbm.prior
        assert (ratio >= 0).all()
        assert (ratio <= 2).all()
        assert (ratio - (1 + sign)).abs().max() < 1e-3


def test_a_free_mask_is_the_prior_plus_a_parameter_per_tap():
    lrbm = LRBM(2, 5, correction="free")
    nn.init.normal_(lrbm.free)
    assert torch.equal(lrbm()[0], lrbm.prior + lrbm.free)


def test_a_floor_bounds_the_mask_from_below_only():
    lrbm = randomise(LRBM(2, 9, correction="additive"))
    assert lrbm().min() < 0.05
    bounded = LRBM(2, 9, correction="additive", mask_floor=0.05)
    bounded.generator.load_state_dict(lrbm.generator.state_dict())
    assert torch.equal(bounded(), lrbm().clamp(min=0.05))


def test_a_learned_beta_changes_the_prior_and_receives_its_gradient():
    lrbm = LRBM(1, 7, learned=False, beta=2.0, learn_beta=True).double()
    lrbm().sum().backward()
    low, high = (compute_distance_prior(7, 2.0 * math.exp(step)).sum().item() for step in (-1e-3, 1e-3))
    assert lrbm.log_beta.grad.item() == pytest.approx((high - low) / 2e-3, rel=1e-3)
    nn.init.constant_(lrbm.log_beta, math.log(5))
    torch.testing.assert_close(lrbm()[0, 0].float(), compute_distance_prior(7, 5.0))


def test_replicate_padding_leaves_no_frame():
    """A map without structure stays without structure: with zeros outside, the outermost three voxels differ."""
    flat = torch.full((1, 1, 9, 9, 9), 0.3)
    for padding, frame in (("replicate", False), ("zeros", True)):
        generated = randomise(LRBM(1, 9, generator_depth=1, generator_padding=padding)).generator(flat)
        assert bool((generated - generated[0, 0, 4, 4, 4]).abs().max() > 1e-4) == frame


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator_depth": 0}, "generator_depth: found 0"),
        ({"generator_ks": 4}, "found 4"),
        ({"ks": 6}, "ks: found 6"),
        ({"beta": 0}, "beta"),
        ({"correction": "guessed"}, "correction: found 'guessed', expected one of gated, additive, free"),
        ({"generator_padding": "mirror"}, "generator_padding: found 'mirror', expected one of zeros, replicate"),
        ({"mask_floor": math.nan}, "mask_floor: found nan"),
    ],
)
def test_mask_refuses_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LRBM(**{"channels": 2, "ks": 5, **options})


def test_mask_is_computed_in_full_precision_under_autocast():
    lrbm = randomise(LRBM(2, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask = lrbm()
    assert torch.equal(mask, lrbm())


# Shapes

SHAPES = [
    ({}, (1, 1, 32, 32, 32), 3),
    ({"ks": 3}, (2, 1, 32, 48, 16), 3),
    ({"ks": 7, "in_chans": 2, "out_chans": 5}, (1, 2, 32, 48, 16), 5),
    ({"ks": 21, "out_chans": 1}, (1, 1, 48, 32, 16), 1),
    ({"in_chans": 4, "depths": (1, 2, 1, 2)}, (1, 4, 32, 16, 16), 3),
    ({"hidden_size": 20, "feat_size": (6, 6, 6, 6)}, (1, 1, 16, 16, 32), 3),
    ({"norm_name": "batch", "res_block": False}, (2, 1, 32, 32, 16), 3),
    ({"beta": 4.0, "generator_depth": 3, "generator_ks": 3}, (1, 1, 32, 32, 16), 3),
    ({"generator_depth": 1, "per_channel": True}, (1, 1, 32, 32, 16), 3),
    ({"correction": "additive", "mask_floor": 0.01}, (1, 1, 32, 32, 16), 3),
    ({"correction": "free", "learn_beta": True}, (1, 1, 32, 32, 16), 3),
    ({"generator_padding": "replicate"}, (1, 1, 32, 32, 16), 3),
    ({"mask": "fixed"}, (1, 1, 32, 32, 16), 3),
    ({"mask": "none"}, (1, 1, 32, 32, 16), 3),
    ({"deploy": True}, (1, 1, 32, 32, 16), 3),
]


@pytest.mark.parametrize(("options", "input_shape", "classes"), SHAPES)
def test_logits_keep_the_grid(options, input_shape, classes):
    logits = tiny_rep3d(**options)(torch.randn(input_shape))
    assert logits.shape == (input_shape[0], classes, *input_shape[2:])


@pytest.mark.parametrize(("hidden_size", "channels"), [(None, 32), (20, 20)])
def test_bottleneck_is_as_wide_as_asked_or_twice_the_last_stage(hidden_size, channels):
    network = tiny_rep3d(feat_size=(4, 8, 12, 16), hidden_size=hidden_size)
    assert network.encoder5(torch.randn(1, 16, 2, 2, 2)).shape == (1, channels, 2, 2, 2)


def test_encoder_halves_the_grid_at_each_stage():
    features = tiny_rep3d(feat_size=(4, 8, 12, 16)).rep3d(torch.randn(1, 1, 32, 48, 16))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (4, 16, 24, 8),
        (8, 8, 12, 4),
        (12, 4, 6, 2),
        (16, 2, 3, 1),
    ]


# Learning


def names_of(network, in_block):
    """Return the full names of the parameters that ``in_block`` names within each block."""
    return {name for name, _ in network.named_parameters() if name.partition("lrbm")[2] in in_block}


def names_without_gradient(network):
    network(torch.randn(2, 1, 32, 32, 32)).square().mean().backward()
    return {name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()}


@every_mask
def test_every_parameter_receives_a_gradient(mask):
    network = randomise(tiny_rep3d(**mask))
    learned = names_of(network, EARLIER_GENERATOR_LAYERS | LAST_GENERATOR_LAYER | {".free", ".log_beta"})
    assert bool(learned) == (mask["mask"] == "learned")
    assert not names_without_gradient(network)


@learned_mask
def test_zero_start_blocks_only_the_earlier_generator_layers(mask):
    network = tiny_rep3d(**mask)
    assert names_without_gradient(network) == names_of(network, EARLIER_GENERATOR_LAYERS)


@learned_mask
def test_optimiser_moves_the_kernel_and_then_the_whole_generator(mask):
    network = tiny_rep3d(**mask)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    x, target = torch.randn(2, 1, 32, 32, 16), torch.randint(3, (2, 32, 32, 16))

    def names_left_by_a_step():
        before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        optimiser.zero_grad()
        F.cross_entropy(network(x), target).backward()
        optimiser.step()
        return {name for name, parameter in network.named_parameters() if torch.equal(parameter, before[name])}

    assert names_left_by_a_step() == names_of(network, EARLIER_GENERATOR_LAYERS)
    assert not names_left_by_a_step()


@pytest.mark.parametrize("mask", [MASKS[name] for name in MASKS if name != "none"])
def test_mask_scales_the_gradient_of_the_kernel(mask):
    block = randomise(rep3d_block(4, ks=7, **mask)).double()
    block.norm, block.act = nn.Identity(), nn.Identity()
    x = torch.randn(2, 4, 8, 8, 8, dtype=torch.float64)
    block(x).square().sum().backward()

    effective = block.get_equivalent_kernel().detach().requires_grad_()
    large_kernel_conv3d(x, effective).square().sum().backward()
    assert relative_error(block.dwconv.weight.grad, effective.grad * block.lrbm()) < 1e-12


# Side effects


@every_mask
def test_forward_changes_no_parameter(mask):
    network = randomise(tiny_rep3d(**mask))
    x = torch.randn(2, 1, 32, 32, 16)
    before = copy.deepcopy(dict(network.named_parameters()))
    for _ in range(2):
        network(x).sum().backward()
    network.eval()
    state = copy.deepcopy(network.state_dict())
    assert torch.equal(network(x), network(x))
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@every_mask
def test_equivalent_kernel_is_pure_and_differentiable(mask):
    block = randomise(rep3d_block(4, ks=7, **mask))
    before = copy.deepcopy(block.state_dict())
    kernel = block.get_equivalent_kernel()
    assert torch.equal(kernel, block.get_equivalent_kernel())
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    kernel.square().sum().backward()
    kernel_parameters = [block.dwconv.weight, *(block.lrbm.parameters() if block.lrbm else [])]
    assert all(parameter.grad is not None for parameter in kernel_parameters)


# Bad input


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 32, 32, 40), "found 32 x 32 x 40, expected three sides divisible by 16"),
        ((1, 1, 16, 16, 16), "found 16 x 16 x 16"),
        ((1, 2, 32, 32, 32), r"expected \(N, 1, D, H, W\)"),
        ((1, 32, 32, 32), r"found shape \(1, 32, 32, 32\)"),
    ],
)
def test_invalid_inputs_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny_rep3d()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feat_size": (4, 8, 12)}, r"feat_size: found \(4, 8, 12\), expected 4"),
        ({"depths": (1, 1, 1, 1, 1)}, "depths: found"),
        ({"depths": (1, 0, 1, 1)}, "depths: found"),
        ({"ks": 4}, "found 4, expected an odd"),
        ({"mask": "spiral"}, "mask: found 'spiral', expected one of learned, fixed, none"),
        ({"beta": -1.0}, "beta: found -1"),
        ({"generator_depth": 0}, "generator_depth: found 0"),
        ({"generator_ks": 2}, "found 2, expected an odd"),
        ({"correction": "guessed"}, "correction: found 'guessed', expected one of gated, additive, free"),
        ({"mask": "none", "learn_beta": True}, "learn_beta: found True, expected it only with a fixed or a learned"),
        ({"mask": "fixed", "correction": "free"}, "correction: found free, expected it only with a learned mask"),
        (
            {"correction": "free", "generator_ks": 5},
            "generator_ks: found 5, expected it only with a gated or add",
        ),
        ({"mask": "fixed", "product": "published", "per_channel": True}, "per_channel: found True, expected it only"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_rep3d(**options)


@pytest.mark.parametrize("form", [{}, {"mask": "none"}, {"deploy": True}])
def test_a_block_refuses_unknown_options_in_every_form(form):
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        rep3d_block(4, 3, depth=3, **form)

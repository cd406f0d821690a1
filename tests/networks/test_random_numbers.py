"""Variants of a network start with the same weights, but for the parts that one of them lacks."""

import pytest
import torch

from networks import build_network
from networks.random_numbers import separate_random_numbers

SMALL = {"feat_size": (4, 8, 12, 16), "depths": (1, 1, 1, 1), "kernel_size": 5}


def start(name, **options):
    torch.manual_seed(7)
    return build_network(name, 1, 3, (32, 32, 32), **SMALL, **options).state_dict()


@pytest.mark.parametrize(
    ("name", "options", "plain"),
    [
        ("REP3D", {}, "REP3D_NONE"),
        ("REP3D", {"correction": "additive", "generator_depth": 3, "generator_ks": 3}, "REP3D_NONE"),
        ("REP3D", {"correction": "free", "learn_beta": True}, "REP3D_NONE"),
        ("REP3D", {"per_channel": True, "generator_padding": "replicate"}, "REP3D_NONE"),
        ("REP3D_FIXED", {}, "REP3D_NONE"),
        ("REP3D_FIXED", {"product": "compounding"}, "REP3D_NONE"),
        ("REPOPT", {"branches": True}, "REP3D_NONE"),
        ("REPOPT", {"field": "prior", "start": "plain"}, "REP3D_NONE"),
        ("3DUXNET_LRBM_K7", {}, "3DUXNET"),
    ],
)
def test_variants_share_their_other_weights(name, options, plain):
    variant, expected = start(name, **options), start(plain)
    own = {key for key in variant if ".lrbm." in key or ".small." in key}
    assert variant.keys() - own == expected.keys()
    assert all(torch.equal(variant[key], expected[key]) for key in expected)


def test_one_kernel_starts_as_its_two_branches():
    single, branches = start("REPOPT"), start("REPOPT", branches=True)
    name = "rep3d.stages.1.0"
    window = torch.zeros(5, 5, 5)
    window[1:4, 1:4, 1:4] = branches[f"{name}.small.weight"][2, 0]
    large = branches[f"{name}.dwconv.weight"][2, 0]
    torch.testing.assert_close(single[f"{name}.dwconv.weight"][2, 0], large + window, rtol=0, atol=0)


def test_generators_start_with_weights_of_their_own():
    weights = start("REP3D")
    generators = [value for key, value in weights.items() if key.endswith(".lrbm.generator.0.weight")]
    assert len(generators) == 4
    pairs = torch.corrcoef(torch.stack([value.flatten() for value in generators]))
    assert (pairs - torch.eye(4)).abs().max() < 0.3  # 343 random numbers correlate by 0.05


def test_the_sequence_goes_on_as_if_nothing_had_been_drawn():
    torch.manual_seed(3)
    with separate_random_numbers():
        first = torch.rand(5)
    following = torch.rand(5)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(5), following)
    assert not torch.equal(first, following)
    with separate_random_numbers():
        second = torch.rand(5)
    assert not torch.equal(first, second)

"""Deep supervision adds the logits of coarser stages in training, and changes nothing else."""

import copy

import pytest
import torch
from smallest import build_narrow, smallest_input

from engine.weights.load_weights import load_weights
from networks import NETWORKS, build_network, names_with

ABLE = names_with("enable_deep_supervision")
ONE_OF_EACH_CLASS = {"nnUNet": 8, "MedNeXt_S": 8, "ResEncUNet": 8, "nnFormer": 4, "STUNet_S": 8}  # coarsest factor


def build(name, deep=False):
    torch.manual_seed(0)
    network = build_narrow(name)
    if deep:
        network.enable_deep_supervision()
    return network


@pytest.mark.parametrize(("name", "coarsest"), ONE_OF_EACH_CLASS.items())
def test_each_grid_has_logits_and_each_trained_parameter_a_gradient(name, coarsest):
    network, plain = build(name, deep=True).train(), build(name).train()
    size = smallest_input(name)
    x = torch.randn(1, 1, *size)
    torch.manual_seed(1)  # stochastic depth
    expected = plain(x)
    torch.manual_seed(1)
    logits = network(x)
    assert torch.equal(logits[0], expected)
    factors = [2**place for place in range(len(logits))]
    assert factors[-1] == coarsest
    assert [grid.shape for grid in logits] == [(1, 3, *(side // factor for side in size)) for factor in factors]
    sum(grid.square().mean() for grid in logits).backward()
    for key, parameter in network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key
        assert parameter.requires_grad != key.startswith(network.unused_prefixes or "none"), key
    network.eval()
    assert torch.equal(network(x), plain.eval()(x))


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_checkpoints_are_interchangeable(name):
    plain, deep = build(name), build(name, deep=True)
    for source, target in ((deep, plain), (deep, copy.deepcopy(deep))):
        weights = {key: value + 1 for key, value in source.state_dict().items() if value.is_floating_point()}
        constants = {key: value for key, value in source.state_dict().items() if key not in weights}
        load_weights(target, {**weights, **constants}, "weights.pth", strict=True)
        assert all(torch.equal(value, weights[key]) for key, value in target.state_dict().items() if key in weights)
    heads = deep.state_dict().keys() - plain.state_dict().keys()
    report = load_weights(deep, plain.state_dict(), "weights.pth")
    assert set(report.missing) == {key for key in heads if not key.startswith(deep.unused_prefixes or "none")}
    assert report.skipped == ()


def test_an_nnunet_of_fewer_levels():
    """As nnU-Net plans it for small crops."""
    network = build_network("nnUNet", 1, 3, (16, 24, 16), filters=(4, 6, 8, 10))
    assert network.input_sizes.divisor == 8
    assert len(network.encoder_prefixes) == 4
    network.enable_deep_supervision()
    logits = network(torch.zeros(1, 1, 16, 24, 16))
    assert [grid.shape for grid in logits] == [(1, 3, 16, 24, 16), (1, 3, 8, 12, 8)]


def test_another_number_of_classes_starts_all_heads_anew():
    other = build_network("nnUNet", 1, 5, smallest_input("nnUNet"), filters=(4, 8, 12, 16, 20, 24))
    other.enable_deep_supervision()
    network = build("nnUNet", deep=True)
    report = load_weights(network, other.state_dict(), "weights.pth")
    assert {key.partition(".")[0] for key in report.missing} == {"output_block", "deep_supervision_heads"}


def test_heads_of_every_size_have_a_network():
    """Without the memory of the large ones."""
    for name in ABLE:
        with torch.device("meta"):
            build_narrow(name).enable_deep_supervision()
    assert set(ONE_OF_EACH_CLASS) <= set(ABLE)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(ABLE)))
def test_other_networks_have_none(name):
    with torch.device("meta"), pytest.raises(ValueError, match="has no deep supervision in its paper"):
        build_narrow(name).enable_deep_supervision()


def test_a_shallow_network_has_no_stage_to_supervise():
    network = build_network("ResEncUNet", 1, 2, (16, 16, 16), feat_size=(4, 4, 8), n_blocks=(1, 1, 1))
    with pytest.raises(ValueError, match="n_blocks: found 3 stages, expected at least 4"):
        network.enable_deep_supervision()

"""Learning-rate schedule and optimisers."""

import pytest
import torch
from torch import nn

from engine.runtime.errors import InputError
from engine.training.optimizer import LearningRateSchedule, make_optimizer, set_learning_rate
from networks import build_network

TINY = {"feat_size": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "kernel_size": 7}


def test_warmup_rises_to_the_peak_and_the_cosine_falls_to_zero():
    schedule = LearningRateSchedule("warmup_cosine", 1e-4, warmup_iter=10, max_iter=110)
    rates = [schedule(iteration) for iteration in range(110)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[0] == pytest.approx(1e-4 / 11)
    assert max(rates) == rates[10] == 1e-4
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(0.5e-4)
    assert 0 < rates[-1] < 1e-7


@pytest.mark.parametrize("schedule", [("constant", 1e-4, 10, 110), ("warmup_cosine", 1e-4, 0, 1)])
def test_learning_rate_without_warmup(schedule):
    assert LearningRateSchedule(*schedule)(0) == 1e-4


def test_adamw_is_that_of_the_paper():
    (group,) = make_optimizer("AdamW", nn.Linear(2, 2), 1e-4, 0.08).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0.08)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_every_optimiser_steps(name):
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    optimizer = make_optimizer(name, network, 1e-4, 0.08)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert type(optimizer).__name__ == name
    assert not torch.equal(network.weight, before)


def test_rep_optimizer_scales_the_updates_of_its_network_only():
    """With a gradient of one everywhere, a step of SGD moves each weight in proportion to its mask."""
    torch.manual_seed(0)
    moved = {}
    for name in ("REPOPT", "REP3D_NONE"):
        network = build_network(name, 1, 2, **TINY)
        kernel = network.encoder.stages[0][0].dwconv.weight
        before = kernel.detach().clone()
        optimizer = make_optimizer("SGD", network, 0.1, 0)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved[name] = (before - kernel.detach())[0, 0]
    ratio = moved["REPOPT"] / moved["REP3D_NONE"]
    expected = torch.ones(7, 7, 7)
    expected[2:5, 2:5, 2:5] = 2
    torch.testing.assert_close(ratio, expected, rtol=1e-3, atol=1e-3)


def test_frozen_parameters_are_not_optimised():
    network = build_network("TransBTS", 1, 2, (16, 16, 16), embed_dim=8, num_layers=1, mlp_dim=8)
    (group,) = make_optimizer("AdamW", network, 1e-4, 0.08).param_groups
    assert len(group["params"]) == sum(parameter.requires_grad for parameter in network.parameters())
    assert len(group["params"]) < len(list(network.parameters()))


def rates_by_name(network, optimizer):
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {names[parameter]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}


def test_masks_learn_at_their_own_rate():
    network = build_network("REP3D", 1, 2, **TINY, learn_beta=True)
    optimizer = make_optimizer("AdamW", network, 1e-3, 0.08, mask_lr_factor=0.01)
    for rate in (1e-3, 5e-4):
        set_learning_rate(optimizer, rate)
        for name, found in rates_by_name(network, optimizer).items():
            assert found == pytest.approx(rate * (0.01 if ".lrbm." in name else 1))
    assert len(rates_by_name(network, optimizer)) == len(list(network.parameters()))


def test_branches_learn_at_their_own_rates():
    network = build_network("REPOPT", 1, 2, **TINY, branches=True, large_rate=0.5, small_rate=0.1)
    for name, rate in rates_by_name(network, make_optimizer("SGD", network, 1.0, 0)).items():
        assert rate == (0.5 if "dwconv" in name else 0.1 if ".small." in name else 1)


@pytest.mark.parametrize("name", ["REP3D_FIXED", "nnUNet"])
def test_a_rate_of_masks_needs_learned_masks(name):
    with pytest.raises(InputError, match=r"--mask_lr_factor: found 0\.1, expected a network with learned masks"):
        make_optimizer("AdamW", build_network(name, 1, 2), 1e-3, 0, mask_lr_factor=0.1)

"""Optimiser, learning rates and precision are those of main_train.py."""

import importlib

import pytest
import torch
from torch import nn

from engine.training.optimizer import LearningRateSchedule, make_optimizer
from networks import build_network


@pytest.fixture(scope="module")
def recipe(rep3d):
    return importlib.import_module("rep3d.nnunet.recipe")


def test_adamw_is_that_of_main_train(recipe):
    network = build_network("TransBTS", 1, 2, (16, 16, 16), embed_dim=8, num_layers=1, mlp_dim=8)  # some are frozen
    (ours,) = recipe.make_adamw(network.parameters(), 1e-4, 0.08).param_groups
    (expected,) = make_optimizer("AdamW", network, 1e-4, 0.08).param_groups
    assert len(ours["params"]) == len(expected["params"]) < len(list(network.parameters()))
    options = set(ours) - {"params"}
    assert {name: ours[name] for name in options} == {name: expected[name] for name in options}


@pytest.mark.parametrize(("per_epoch", "epochs"), [(25, 8), (3, 2), (1, 1)])
def test_learning_rates_are_those_of_main_train_also_after_a_restart(recipe, per_epoch, epochs):
    total = per_epoch * epochs
    expected = LearningRateSchedule("warmup_cosine", 1e-4, total // 50, total)
    optimizer = recipe.make_adamw(nn.Linear(2, 2).parameters(), 1.0, 0.08)
    schedule = recipe.WarmupCosine(optimizer, 1e-4, per_epoch, epochs)
    for epoch in (*range(epochs), epochs - 1):  # the last one again, as after a crash
        schedule.step(epoch)
        for iteration in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            schedule.advance()
            assert optimizer.param_groups[0]["lr"] == expected(iteration)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocasts_that_name_no_precision_have_the_given_one(recipe, precision):
    before = torch.get_autocast_dtype("cpu")
    with recipe.default_autocast("cpu", precision), torch.autocast("cpu"):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == precision
    assert torch.get_autocast_dtype("cpu") == before
    with recipe.default_autocast("cpu", None):
        assert torch.get_autocast_dtype("cpu") == before

"""Optimiser, learning rates and precision are those of main_train.py."""

import importlib

import pytest
import torch
from nnunet_plans import PATCH, SMALL
from torch import nn

import main_train
from engine.training.optimizer import LearningRateSchedule, make_optimizer
from networks import build_network

# Some parameters of the first are frozen; the second has masks.
NETWORKS = {"TransBTS": {"embed_dim": 8, "num_layers": 1, "mlp_dim": 8}, "REP3D": SMALL}


@pytest.fixture(scope="module")
def recipe(rep3d):
    return importlib.import_module("rep3d.nnunet.recipe")


def default_flags(iterations):
    return main_train.parse_args(["--root", "r", "--dataset", "d", "--output", "o", "--max_iter", str(iterations)])


@pytest.mark.parametrize("name", NETWORKS)
def test_adamw_is_that_of_main_train(recipe, name):
    flags = default_flags(200)
    network = build_network(name, 1, 2, (32, 32, 32), **NETWORKS[name])
    (ours,) = recipe.make_adamw(network, flags.lr, flags.weight_decay).param_groups
    default = make_optimizer(flags.optim, network, flags.lr, flags.weight_decay, flags.mask_lr_factor)
    (expected,) = default.param_groups  # one decay and one rate for all: kernels, biases, norms, masks
    assert [id(weight) for weight in ours["params"]] == [id(weight) for weight in expected["params"]]
    assert expected.pop("rate_factor") == 1
    del ours["params"], expected["params"]
    assert (type(default), expected) == (torch.optim.AdamW, ours)


def test_repopt_is_trained_as_by_main_train(recipe, rep3d):
    """The two optimisers scale the updates of the large kernels alike; one that does not is refused."""
    adapter = importlib.import_module("rep3d.nnunet.adapter")
    errors = importlib.import_module("rep3d.nnunet.errors")
    ours = adapter.NetworkFromPlans(1, 2, PATCH, "REPOPT", **SMALL)
    theirs = build_network("REPOPT", 1, 2, PATCH, **SMALL)
    theirs.load_state_dict(ours.model.state_dict())
    image = torch.randn(2, 1, *PATCH)
    with pytest.raises(errors.PlansError, match="found REPOPT with an optimiser that does not scale its updates"):
        ours(image)
    optimizers = recipe.make_adamw(ours, 1e-2, 0.08), make_optimizer("AdamW", theirs, 1e-2, 0.08)
    for _ in range(2):
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(image).square().mean().backward()
            optimizer.step()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], weight, rtol=0, atol=0)
    stock = adapter.NetworkFromPlans(1, 2, PATCH, "REPOPT", **SMALL)
    assert stock.eval()(image).shape == (2, 2, *PATCH)  # predictions need no optimiser
    assert adapter.NetworkFromPlans(1, 2, PATCH, "REPOPT", branches=True, **SMALL)(image).requires_grad


@pytest.mark.parametrize(("per_epoch", "epochs"), [(25, 8), (3, 2), (1, 1)])
def test_learning_rates_are_those_of_main_train_also_after_a_restart(recipe, per_epoch, epochs):
    total = per_epoch * epochs
    flags = default_flags(total)
    expected = LearningRateSchedule(flags.lr_schedule, 1e-4, flags.warmup_iter, total)
    optimizer = recipe.make_adamw(nn.Linear(2, 2), 1.0, 0.08)
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

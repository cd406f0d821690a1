"""A single kernel with scaled updates trains like two branches with constant scales, or like a fixed mask."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from engine.training.optimizer import group_by_rate
from networks.Rep3D import compute_distance_prior, rep3d_block
from networks.RepOptimizer import csla_block, repopt_block
from networks.RepOptimizer.rep_optimizer import scale_updates

SCALES = {"ks": 7, "small_ks": 3, "large_scale": 0.7, "small_scale": 1.3}
RATES = {"large_rate": 0.4, "small_rate": 2.5}


def two_forms(**rates):
    """Build both blocks in float64 with the same equivalent kernel."""
    torch.manual_seed(0)
    branches, single = csla_block(3, **SCALES, **rates).double(), repopt_block(3, **SCALES, **rates).double()
    with torch.no_grad():
        single.dwconv.weight.copy_(branches.get_equivalent_kernel())
    return branches, single


def mask_and_field():
    """Build a block with the fixed mask, and a plain one with the mask's start and updates, in float64."""
    torch.manual_seed(0)
    masked = rep3d_block(3, ks=7, mask="fixed").double()
    torch.manual_seed(0)
    plain = repopt_block(3, ks=7, field="prior", start="prior").double()
    with torch.no_grad():  # their product was rounded to float32
        plain.dwconv.weight.copy_(masked.get_equivalent_kernel())
    return masked, plain


def kernels_after(blocks, make_optimizer, steps=50):
    """Train each block on the same noise; return the final equivalent kernels."""
    for block in blocks:
        groups = group_by_rate(block, 1.0, {})
        optimizer = make_optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group["rate_factor"]
        scale_updates(optimizer, block)
        torch.manual_seed(1)
        for _ in range(steps):
            x, target = torch.randn(2, 2, 3, 8, 8, 8, dtype=torch.float64)
            optimizer.zero_grad()
            nn.functional.mse_loss(block(x), target).backward()
            optimizer.step()
    return [block.get_equivalent_kernel().detach() for block in blocks]


def relative_difference(found, expected, start):
    """Compute the distance of two kernels relative to the update of ``expected`` from their common start."""
    return ((found - expected).norm() / (expected - start).norm()).item()


OPTIMISERS = {
    "SGD": lambda parameters: SGD(parameters, 0.05),
    "SGD with momentum and decay": lambda parameters: SGD(
        parameters, 0.05, momentum=0.9, nesterov=True, weight_decay=0.1
    ),
    "AdamW": lambda parameters: AdamW(parameters, 1e-3, eps=1e-16, weight_decay=0),
}
every_optimiser = pytest.mark.parametrize("make_optimizer", OPTIMISERS.values(), ids=OPTIMISERS)


@every_optimiser
def test_scaled_updates_train_like_two_branches(make_optimizer):
    assert_same_training(two_forms(), make_optimizer)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_scaled_updates_train_like_two_branches_with_rates_of_their_own(name):
    """Without weight decay, which each branch would scale by its rate."""
    assert_same_training(two_forms(**RATES), OPTIMISERS[name])


@pytest.mark.parametrize(
    "make_optimizer",
    [*OPTIMISERS.values(), lambda parameters: AdamW(parameters, 1e-3, eps=1e-8, weight_decay=0.08)],
    ids=[*OPTIMISERS, "AdamW with the eps and decay of the recipe"],
)
def test_the_prior_as_rate_and_start_trains_like_the_fixed_mask(make_optimizer):
    assert_same_training(mask_and_field(), make_optimizer)


def assert_same_training(blocks, make_optimizer):
    start = blocks[1].get_equivalent_kernel().detach().clone()
    expected, single = kernels_after(blocks, make_optimizer)
    assert relative_difference(single, expected, start) < 1e-9
    torch.testing.assert_close(blocks[0].norm.weight, blocks[1].norm.weight)


@pytest.mark.parametrize("start", ["plain", "prior"])
def test_starts_draw_the_kernel_of_the_plain_block(start):
    torch.manual_seed(3)
    plain = rep3d_block(3, ks=7, mask="none").dwconv.weight
    after = torch.rand(1)
    torch.manual_seed(3)
    block = repopt_block(3, ks=7, start=start, field="uniform")
    assert torch.equal(block.dwconv.weight, plain * (compute_distance_prior(7) if start == "prior" else 1))
    assert torch.equal(torch.rand(1), after)  # so that the layers after it start the same as well


def test_unscaled_updates_train_differently():
    blocks = two_forms()
    start = blocks[1].get_equivalent_kernel().detach().clone()
    plain = repopt_block(3, **{**SCALES, "large_scale": 1.0, "small_scale": 1e-9}).double()
    plain.load_state_dict(blocks[1].state_dict())
    branches, single = kernels_after([blocks[0], plain], lambda parameters: SGD(parameters, 0.05))
    assert relative_difference(single, branches, start) > 0.1


def test_adamw_decays_weights_unscaled():
    _, block = two_forms()
    before = block.dwconv.weight.detach().clone()
    optimizer = AdamW(block.parameters(), 0.1, weight_decay=0.5)
    scale_updates(optimizer, block)
    for parameter in block.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(block.dwconv.weight, before * (1 - 0.1 * 0.5))


def test_a_kernel_without_gradient_is_unchanged():
    _, block = two_forms()
    before = block.dwconv.weight.detach().clone()
    optimizer = AdamW(block.parameters(), 0.1, weight_decay=0.5)
    scale_updates(optimizer, block)
    optimizer.step()
    assert torch.equal(block.dwconv.weight, before)


def test_a_resumed_optimiser_continues_identically():
    def run(steps, resume_at=None):
        _, block = two_forms()
        optimizer = AdamW(block.parameters(), 1e-3)
        scale_updates(optimizer, block)
        for step in range(steps):
            if step == resume_at:
                saved = optimizer.state_dict()
                optimizer = AdamW(block.parameters(), 1e-3)
                optimizer.load_state_dict(saved)
                scale_updates(optimizer, block)
            torch.manual_seed(step)
            block.zero_grad()
            block(torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        return block.dwconv.weight

    assert torch.equal(run(6), run(6, resume_at=3))


def test_the_update_mask_is_the_sum_of_powers_of_the_scales():
    mask = repopt_block(3, **SCALES).update_mask(2)
    assert mask.shape == (7, 7, 7)
    assert mask[0, 0, 0] == mask[1, 3, 3] == pytest.approx(0.7**2)
    assert mask[2, 2, 2] == mask[4, 4, 4] == pytest.approx(0.7**2 + 1.3**2)
    assert mask.sum() == pytest.approx(343 * 0.7**2 + 27 * 1.3**2, rel=1e-5)


def test_other_optimisers_are_refused():
    _, block = two_forms()
    with pytest.raises(ValueError, match="found Adam, expected AdamW or SGD"):
        scale_updates(Adam(block.parameters()), block)


@pytest.mark.parametrize("module", [nn.Linear(2, 2), repopt_block(3, ks=7, field="uniform")], ids=["other", "uniform"])
def test_what_needs_no_scales_gets_no_hook(module):
    optimizer = Adam(module.parameters())
    scale_updates(optimizer, module)
    assert not optimizer._optimizer_step_pre_hooks

"""Checks of docs/theory.md in float64: branches, masks and their generator, taps without data, compounding."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD, Adam, AdamW

from engine.training.optimizer import LearningRateSchedule
from networks.large_kernel_conv import large_kernel_conv3d
from networks.Rep3D import LRBM, REP3D, compute_distance_prior, rep3d_block

KS, SMALL_KS, STEPS = 7, 3, 50
LARGE_SCALE, SMALL_SCALE = 0.7, 1.3  # aL and aS
LR = 1e-2
BETA1, BETA2 = 0.9, 0.999
EXACT = 1e-10
PRIOR = compute_distance_prior(KS).double()
WIDE_PRIOR = compute_distance_prior(21).double()

with_rates = pytest.mark.parametrize("rates", [(1.0, 1.0), (0.4, 2.5)], ids=["one rate", "a rate per branch"])


def random_kernel(seed, ks=KS):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(2, 1, ks, ks, ks, dtype=torch.float64, generator=generator)


def regression_loss(kernel, step):
    """Compute the error of a kernel against a fixed one, on noise that differs from step to step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2, 2, 8, 8, 8, dtype=torch.float64, generator=generator)
    return F.mse_loss(large_kernel_conv3d(x, kernel), large_kernel_conv3d(x, random_kernel(99)))


def train(optimizer, compose, loss=regression_loss):
    """Train with PyTorch's optimiser; return the composed kernel at the start and after each step."""
    kernels = [compose().detach().clone()]
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(compose(), step).backward()
        optimizer.step()
        kernels.append(compose().detach().clone())
    return torch.stack(kernels)


def train_by_rule(kernel, update):
    """Train one kernel without an optimiser, by a function from kernel and gradient to the next kernel."""
    kernels = [kernel]
    for step in range(STEPS):
        leaf = kernels[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(regression_loss(leaf, step), leaf)
        kernels.append(update(kernels[-1], gradient))
    return torch.stack(kernels)


def scaled_sgd(rates):
    return lambda kernel, gradient: kernel - LR * rates * gradient


class ScaledAdamW:
    """AdamW whose gradient and update are multiplied by a rate per tap; the weight decay is not."""

    def __init__(self, rates, eps=0.0, decay=0.0):
        self.rates, self.eps, self.decay = rates, eps, decay
        self.mean = self.square = self.steps = 0

    def __call__(self, kernel, gradient):
        self.steps += 1
        gradient = self.rates * gradient
        self.mean = BETA1 * self.mean + (1 - BETA1) * gradient
        self.square = BETA2 * self.square + (1 - BETA2) * gradient**2
        scale = (self.square / (1 - BETA2**self.steps)).sqrt() + self.eps
        return kernel * (1 - LR * self.decay) - LR * self.rates * self.mean / (1 - BETA1**self.steps) / scale


def errors(found, expected):
    """Compute the distance of two trajectories after each step, relative to the way from the start of ``expected``."""
    distance = (found - expected).flatten(1).norm(dim=1)
    return (distance / (expected - expected[0]).flatten(1).norm(dim=1))[1:]


def error(found, expected):
    return errors(found, expected).max().item()


# 1, 2: branches


def train_branches(make_optimizer, rates):
    large, small = random_kernel(0).requires_grad_(), random_kernel(1, SMALL_KS).requires_grad_()
    groups = [{"params": [kernel], "lr": LR * rate} for kernel, rate in zip((large, small), rates, strict=True)]
    margin = ((KS - SMALL_KS) // 2,) * 6
    return train(make_optimizer(groups), lambda: LARGE_SCALE * large + F.pad(SMALL_SCALE * small, margin))


def branch_rates(power, rates):
    field = torch.full((KS,) * 3, LARGE_SCALE**power * rates[0], dtype=torch.float64)
    field[2:5, 2:5, 2:5] += SMALL_SCALE**power * rates[1]
    return field


def branch_errors(eps, decay, rates):
    """Compute the largest and the final error of rates per tap in place of branches, under AdamW."""
    branches = train_branches(lambda groups: AdamW(groups, eps=eps, weight_decay=decay), rates)
    found = errors(train_by_rule(branches[0], ScaledAdamW(branch_rates(1, rates), eps, decay)), branches)
    return [found.max().item(), found[-1].item()]


@with_rates
def test_branches_under_sgd(rates):
    branches = train_branches(SGD, rates)
    assert error(train_by_rule(branches[0], scaled_sgd(branch_rates(2, rates))), branches) < EXACT
    assert error(train_by_rule(branches[0], scaled_sgd(branch_rates(1, rates))), branches) > 0.1


@with_rates
def test_branches_under_adamw(rates):
    assert max(branch_errors(0, 0, rates)) < EXACT


def test_branches_and_weight_decay():
    assert max(branch_errors(0, 0.08, (1.0, 1.0))) < EXACT
    assert branch_errors(0, 0.08, (0.4, 2.5)) == pytest.approx([9.8e-3, 9.8e-3], rel=0.05)


@pytest.mark.parametrize(
    ("eps", "largest", "final"), [(1e-8, 3.0e-7, 8.4e-9), (1e-6, 3.0e-5, 8.4e-7), (1e-4, 2.8e-3, 8.1e-5)]
)
def test_branches_and_eps(eps, largest, final):
    assert branch_errors(eps, 0.08, (1.0, 1.0)) == pytest.approx([largest, final], rel=0.05)


# 3: a fixed mask


def train_masked(make_optimizer, mask, loss=regression_loss):
    kernel = random_kernel(0).requires_grad_()
    return train(make_optimizer([kernel]), lambda: kernel * mask, loss)


def test_fixed_mask_under_sgd():
    masked = train_masked(lambda kernels: SGD(kernels, LR), PRIOR)
    start = PRIOR * random_kernel(0)
    assert error(train_by_rule(start, scaled_sgd(PRIOR**2)), masked) < EXACT
    assert error(train_by_rule(start, scaled_sgd(PRIOR)), masked) > 1


@pytest.mark.parametrize("decay", [0, 0.5])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_fixed_mask_under_adamw(eps, decay):
    masked = train_masked(lambda kernels: AdamW(kernels, LR, eps=eps, weight_decay=decay), PRIOR)
    start, ones = PRIOR * random_kernel(0), torch.ones_like(PRIOR)
    assert error(train_by_rule(start, ScaledAdamW(PRIOR, eps, decay)), masked) < EXACT
    assert error(train_by_rule(start, ScaledAdamW(ones, eps, decay)), masked) > 1  # the start alone
    assert error(train_by_rule(random_kernel(0), ScaledAdamW(PRIOR, eps, decay)), masked) > 1  # the rate alone


def relative_changes(make_optimizer, loss):
    """Compute the change of W * M from its start, relative to it, without a mask and with three."""
    generator = torch.Generator().manual_seed(7)
    random = 0.1 + 3 * torch.rand(KS, KS, KS, dtype=torch.float64, generator=generator)
    masks = torch.ones_like(PRIOR), PRIOR, compute_distance_prior(KS, beta=4.0).double(), random
    for mask in masks:
        kernels = train_masked(make_optimizer, mask, loss)
        yield mask, kernels / kernels[0] - 1


def given_gradients(kernel, step):
    return (kernel * random_kernel(1000 + step)).sum()


def test_relative_change_under_adamw():
    (_, plain), *others = relative_changes(
        lambda kernels: AdamW(kernels, LR, eps=0, weight_decay=0.08), given_gradients
    )
    for _, change in others:
        assert error(change, plain) < EXACT


def test_relative_change_under_sgd():
    (_, plain), *others = relative_changes(lambda kernels: SGD(kernels, LR), given_gradients)
    for mask, change in others:
        assert error(change, mask * plain) < EXACT


def test_first_step_of_adamw():
    """The gradient, and so the direction, depends on the mask."""
    expected = LR / random_kernel(0).abs()
    (_, plain), *others = relative_changes(lambda kernels: AdamW(kernels, LR, eps=0, weight_decay=0), regression_loss)
    for _, change in others:
        torch.testing.assert_close(change[1].abs(), expected, rtol=EXACT, atol=0)
        assert error(change, plain) > 1


# 4, 5: the generator's step


def build_mask(correction, seed=0):
    torch.manual_seed(seed)
    return LRBM(1, 21, correction=correction).double()


def step_coherently(lrbm, sign, lr, steps=1):
    """Let Adam raise (sign 1) or lower all taps of a mask; return the mask."""
    optimizer = Adam(lrbm.parameters(), lr, eps=1e-30)
    for _ in range(steps):
        optimizer.zero_grad()
        (-sign * lrbm().sum()).backward()
        optimizer.step()
    return lrbm()[0, 0].detach()


@torch.no_grad()
def compute_reach(lrbm):
    """Sum what the last convolution sees around each tap: the sigmoids, and one for the bias."""
    sigmoids = lrbm.generator[:-1](lrbm.prior[None, None])
    return 1 + F.conv3d(sigmoids, torch.ones(1, 1, 7, 7, 7, dtype=torch.float64), padding=3)[0, 0]


def contrast(mask):
    return (mask[10, 10, 10] / mask.mean()).item()


def distance_from_multiples_of_the_prior(mask):
    """Compute the distance relative to the nearest multiple."""
    nearest = (mask * WIDE_PRIOR).sum() / WIDE_PRIOR.square().sum() * WIDE_PRIOR
    return ((mask - nearest).norm() / nearest.norm()).item()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("lr", [1e-4, 2e-3])
def test_coherent_step(lr, sign):
    additive, gated = build_mask("additive"), build_mask("gated")
    change = sign * lr * compute_reach(additive)
    torch.testing.assert_close(step_coherently(additive, sign, lr) - WIDE_PRIOR, change, rtol=EXACT, atol=0)
    ratio = step_coherently(gated, sign, lr) / WIDE_PRIOR  # to 1e-6, because the gain is a float32
    torch.testing.assert_close(ratio - 1, torch.tanh(change / math.sqrt(343)), rtol=1e-6, atol=0)


def test_reach():
    reach = torch.stack([compute_reach(build_mask("gated", seed)) for seed in range(30)])
    largest = reach.amax((1, 2, 3))
    assert reach.mean().item() == pytest.approx(135, abs=1)
    assert [largest.min().item(), largest.max().item()] == pytest.approx([229, 318], rel=0.01)


def test_mean_of_the_prior():
    assert WIDE_PRIOR.mean().item() == pytest.approx(0.0996, abs=5e-5)
    assert WIDE_PRIOR.min().item() == pytest.approx(0.0546, abs=5e-5)
    assert contrast(WIDE_PRIOR) == pytest.approx(10.04, abs=5e-3)


def test_coherent_step_and_shape():
    for seed in range(10):
        additive, gated = (step_coherently(build_mask(form, seed), 1, 2e-3) for form in ("additive", "gated"))
        assert 3 < contrast(additive) < 4.3
        assert contrast(gated) == pytest.approx(10.04, rel=0.02)
        assert (additive - WIDE_PRIOR).norm() > 2.3 * WIDE_PRIOR.norm()
        assert (gated - WIDE_PRIOR).norm() < 0.024 * WIDE_PRIOR.norm()
        assert distance_from_multiples_of_the_prior(additive) > 0.2
        assert 0.004 < distance_from_multiples_of_the_prior(gated) < 0.009


def normalised_block():
    """Build a block with a random mask and hardly any eps; ``scale`` multiplies the mask, tap by tap."""
    torch.manual_seed(0)
    block = rep3d_block(3, KS).double()
    torch.nn.init.normal_(block.lrbm.generator[-1].weight, std=0.05)
    block.norm.eps = 1e-30
    scale = torch.ones(KS, KS, KS, dtype=torch.float64, requires_grad=True)
    block.lrbm.register_forward_hook(lambda module, inputs, mask: mask * scale)
    return block, scale, torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("factor", [0.01, 30])
def test_block_ignores_a_factor_of_its_mask(factor):
    block, scale, x = normalised_block()
    before = block(x)
    with torch.no_grad():
        scale.fill_(factor)
    torch.testing.assert_close(block(x), before, rtol=EXACT, atol=EXACT)
    with torch.no_grad():
        scale[3, 3, 3] *= 1.1
    assert (block(x) - before).abs().max() > 1e-3


def test_no_gradient_along_the_mask():
    block, scale, x = normalised_block()
    (block(x) * torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)).sum().backward()  # scale.grad is M dL/dM
    assert abs(scale.grad.sum()) < EXACT * scale.grad.abs().sum()


@pytest.mark.parametrize(
    ("lr", "iterations", "drift", "walk", "independent"),
    [
        (1e-4, 60000, (517, 27.9), (2.58, 0.140), (0.140, 0.0075)),
        (2e-3, 500, (86, 4.67), (4.72, 0.255), (0.255, 0.0138)),
    ],
)
def test_sums_of_steps(lr, iterations, drift, walk, independent):
    """The additive mask's change, and the gated one's relative to P, where the sigmoids are one half."""
    schedule = LearningRateSchedule("warmup_cosine", lr, iterations // 50, iterations)
    rates = [schedule(iteration) for iteration in range(iterations)]
    for expected, size in (
        (drift, sum(rates) * (1 + 343 / 2)),
        (walk, math.hypot(*rates) * (1 + 343 / 2)),
        (independent, math.hypot(*rates) * math.sqrt(1 + 343 / 4)),
    ):
        assert [size, size / math.sqrt(343)] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("sign", [1, -1])
def test_bounds(sign):
    gated, additive = (step_coherently(build_mask(form), sign, 0.3, steps=8) for form in ("gated", "additive"))
    assert gated.min() >= 0
    assert (gated <= 2 * WIDE_PRIOR).all()
    assert (gated / WIDE_PRIOR).median().item() == pytest.approx(1 + sign, abs=1e-3)
    assert (sign * additive).max() > 100


# 6: taps without data


def overlap(side, ks=21):
    """Compute the share of a grid's positions at which each tap of a 'same' convolution meets data, on one axis."""
    return [max(0, side - abs(offset)) / side for offset in range(-(ks // 2), ks // 2 + 1)]


@pytest.mark.parametrize("method", ["direct", "fft", None])
@pytest.mark.parametrize("grid", [(6, 6, 6), (4, 6, 4), (2, 3, 2), (1, 5, 12)])
def test_overlap_of_taps(grid, method):
    kernel = torch.zeros(1, 1, 21, 21, 21, dtype=torch.float64, requires_grad=True)
    large_kernel_conv3d(torch.ones(1, 1, *grid, dtype=torch.float64), kernel, method=method).sum().backward()
    depth, height, width = (torch.tensor(overlap(side), dtype=torch.float64) for side in grid)
    share = depth[:, None, None] * height[:, None] * width
    torch.testing.assert_close(kernel.grad[0, 0], math.prod(grid) * share, rtol=EXACT, atol=EXACT)
    assert torch.equal(kernel.grad[0, 0] == 0, share == 0)


def test_overlap_of_a_corner_tap():
    assert overlap(12)[0] ** 3 == pytest.approx(1 / 216)
    kernel = torch.zeros(1, 1, 21, 21, 21, dtype=torch.float64, requires_grad=True)
    large_kernel_conv3d(torch.ones(1, 1, 12, 12, 12, dtype=torch.float64), kernel).sum().backward()
    assert kernel.grad[0, 0, 0, 0, 0].item() == pytest.approx(12**3 / 216)


def count_dead(network, crop):
    """Count the weights of each stage's large kernels that meet no data in a crop."""
    grids = {}
    for stage in network.encoder.stages:
        for block in stage:
            block.register_forward_pre_hook(lambda block, inputs: grids.update({block: inputs[0].shape[2:]}))
    network.encoder(torch.empty(1, 1, *crop))
    dead = [21**3 - math.prod(21 - overlap(side).count(0) for side in grid) for grid in grids.values()]
    weights = {block: block.dwconv.weight.shape[0] * taps for block, taps in zip(grids, dead, strict=True)}
    return [sum(weights[block] for block in stage) for stage in network.encoder.stages]


@pytest.mark.parametrize(
    ("crop", "options", "by_stage", "in_all"),
    [
        ((96, 96, 96), {}, [0, 0, 0, 85.6], 45.7),
        ((48, 64, 48), {}, [0, 0, 80.4, 98.1], 73.8),
        ((32, 48, 32), {"feat_size": (8, 16, 32, 64)}, [0, 49.0, 94.2, 99.5], 84.7),
    ],
)
def test_dead_weights(crop, options, by_stage, in_all):
    with torch.device("meta"):
        network = REP3D(mask="none", **options)
        dead = count_dead(network, crop)
    sizes = [sum(block.dwconv.weight.numel() for block in stage) for stage in network.encoder.stages]
    shares = [100 * count / size for count, size in zip(dead, sizes, strict=True)]
    assert shares == pytest.approx(by_stage, abs=0.05)
    assert 100 * sum(dead) / sum(sizes) == pytest.approx(in_all, abs=0.05)


def test_dead_weights_get_no_gradient():
    torch.manual_seed(0)
    network = REP3D(out_chans=3, feat_size=(8, 16, 32, 64))
    network(torch.randn(1, 1, 32, 48, 32)).square().mean().backward()
    stages = [[(block.dwconv.weight.grad == 0).double().mean().item() for block in s] for s in network.encoder.stages]
    expected = [[share, share] for share in (0, 0.490, 0.942, 0.995)]
    assert torch.tensor(stages).tolist() == [pytest.approx(shares, abs=5e-4) for shares in expected]


# 7: compounding


def test_compounding():
    start = random_kernel(0, ks=21)
    kernel = start.clone()
    for _ in range(60):
        kernel *= WIDE_PRIOR
    centre = kernel[..., 10:11, 10:11, 10:11]
    assert torch.equal(centre, start[..., 10:11, 10:11, 10:11])
    tap = (..., 10, 10, 11)
    torch.testing.assert_close(kernel[tap], start[tap] * 2.0**-60, rtol=EXACT, atol=0)
    assert ((kernel / centre).abs() > 1e-15).sum() == 2  # the centre of each channel
    x = torch.randn(1, 2, 6, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(
        large_kernel_conv3d(x, kernel, method="direct"), x * centre[:, 0], rtol=EXACT, atol=EXACT
    )


def test_compounding_with_steps():
    adam, largest = ScaledAdamW(torch.ones_like(PRIOR)), 0.0

    def multiply_and_step(kernel, gradient):
        nonlocal largest
        stepped = adam(PRIOR * kernel, gradient)
        largest = max(largest, (stepped - PRIOR * kernel).abs().max().item())
        return stepped

    kernels = train_by_rule(random_kernel(0), multiply_and_step)
    kept = kernels[-1].abs() - 2.0**-STEPS * kernels[0].abs()
    away = PRIOR < 1
    assert largest == pytest.approx(LR, rel=0.5)
    assert (kept <= largest / (1 - PRIOR))[:, :, away].all()
    assert kept[:, :, away].max() <= 2 * largest
    assert random_kernel(99)[:, :, away].abs().max() > 10 * kept[:, :, away].max()


def test_the_page_names_every_test():
    page = (Path(__file__).parents[1] / "docs" / "theory.md").read_text()
    named = re.findall(r"`tests/test_theory\.py::(\w+)`", page)
    assert set(named) == {name for name in globals() if name.startswith("test_")} - {"test_the_page_names_every_test"}

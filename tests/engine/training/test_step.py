"""A training step has no host sync, and changes nothing if loss or gradients are not finite."""

import copy

import pytest
import torch
from monai.losses import DiceCELoss
from torch.utils._python_dispatch import TorchDispatchMode

from engine.training import step as training_step
from engine.training.step import train_step

CRITERION = DiceCELoss(to_onehot_y=True, softmax=True)


class CountReads(TorchDispatchMode):
    """Counter of operations that copy a value to the host; each would be a host sync on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def step(state, image):
    label = torch.randint(3, image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return train_step(state, CRITERION, image, label, 1e-2)


@pytest.mark.parametrize("more", [(), ("--ema", "0.9", "--accumulate", "2")])
def test_a_step_has_no_host_sync(make_state, more):
    state = make_state(*more)
    image = torch.randn(2, 1, 32, 32, 16)
    step(state, image)  # the first step may initialise state
    with CountReads() as reads:
        done = step(state, image)
        assert reads.count == 0
        done.loss.item()
        assert reads.count == 1


def everything(state):
    """Copy everything that a step may change."""
    return copy.deepcopy((state.network.state_dict(), state.optimizer.state_dict()["state"]))


def assert_unchanged(before, state):
    weights, moments = everything(state)
    assert all(torch.equal(before[0][name], value) for name, value in weights.items())
    assert all(torch.equal(before[1][key][name], value) for key in moments for name, value in moments[key].items())


@pytest.mark.parametrize("more", [("--optim", name) for name in ("AdamW", "Adam", "SGD")] + [("--network", "REPOPT")])
def test_a_loss_that_is_not_finite_changes_nothing(make_state, more):
    state = make_state(*more)
    image = torch.randn(1, 1, 32, 32, 16)
    assert not step(state, image).skipped
    before = everything(state)
    bad = step(state, torch.full_like(image, torch.nan))
    assert bad.skipped
    assert not bad.loss.isfinite()
    assert_unchanged(before, state)
    assert not step(state, image).skipped
    assert not torch.equal(before[0]["out.conv.conv.weight"], state.network.out.conv.conv.weight)


def test_gradients_that_are_not_finite_change_nothing(make_state):
    state = make_state()
    image = torch.randn(1, 1, 32, 32, 16)
    step(state, image)
    before = everything(state)
    kernel = state.network.out.conv.conv.weight
    hook = kernel.register_hook(lambda gradient: gradient / 0)
    bad = step(state, image)
    assert bad.loss.isfinite()
    assert bad.skipped
    assert_unchanged(before, state)
    hook.remove()
    assert not step(state, image).skipped


def test_infinite_gradients_of_fp16_are_skipped_at_a_lower_scale_each_time(make_state):
    state = make_state("--amp", "fp16")
    image = torch.randn(1, 1, 32, 32, 16)
    assert not step(state, image).skipped  # creates the moments
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = everything(state)
    assert step(state, image).skipped
    assert_unchanged(before, state)
    assert state.scaler.get_scale() == 2.0**126
    state.scaler = torch.amp.GradScaler("cpu")
    assert not step(state, image).skipped
    assert not torch.equal(before[0]["out.conv.conv.weight"], state.network.out.conv.conv.weight)


def test_a_loss_that_is_not_finite_in_another_process_changes_no_weight(make_state, monkeypatch):
    state = make_state()
    before = copy.deepcopy(dict(state.network.named_parameters()))
    monkeypatch.setattr(training_step, "mean_over_processes", lambda loss: loss + torch.nan)
    assert step(state, torch.randn(1, 1, 32, 32, 16)).skipped
    assert all(torch.equal(before[name], value) for name, value in state.network.named_parameters())


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_a_first_step_that_is_skipped_leaves_no_trace(make_state, name):
    """This happens with --amp fp16, whose initial loss scale is too high."""
    skipped, other = make_state("--optim", name), make_state("--optim", name)
    image = torch.randn(1, 1, 32, 32, 16)
    step(skipped, torch.full_like(image, torch.nan))
    for state in (skipped, other):
        step(state, image)
    for one, two in zip(skipped.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(one, two)

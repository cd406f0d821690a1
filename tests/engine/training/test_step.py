"""One optimiser step: what it waits for, and what a loss that is not finite leaves behind."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import train_arguments
from monai.losses import DiceCELoss
from torch.utils._python_dispatch import TorchDispatchMode

import main_train
from engine.data.datasets import DatasetDescription
from engine.evaluation.metrics import DiceTable
from engine.runtime.arguments import network_overrides
from engine.runtime.errors import InputError
from engine.training import training_loop
from engine.training.state import Progress, TrainingState, running_statistics
from engine.training.training_loop import SKIPS_IN_A_ROW, Step, TrainingLog, check_finite, keep_best, train_step
from engine.weights.checkpoints import NetworkConfig

CPU = torch.device("cpu")
CRITERION = DiceCELoss(to_onehot_y=True, softmax=True)


class CountReads(TorchDispatchMode):
    """Counts the operations that bring a value to the host; on a GPU each would wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def make_state(box_template, tmp_path):
    def make(*more):
        torch.manual_seed(0)
        words = train_arguments(box_template, tmp_path, *more)
        args = main_train.parse_args([str(word) for word in words])
        description = DatasetDescription.read(box_template / "boxes.json")
        return TrainingState(
            args,
            NetworkConfig.for_dataset(description, args.network, args.roi_size, network_overrides(args)),
            description,
            ["case"],
            CPU,
        )

    return make


def step(state, image):
    label = torch.randint(3, image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return train_step(state, CRITERION, image, label, 1e-2)


def test_a_step_reads_nothing_back(make_state):
    state = make_state()
    image = torch.randn(1, 1, 32, 32, 16)
    step(state, image)  # the first one may set things up
    with CountReads() as reads:
        done = step(state, image)
        assert reads.count == 0
        done.loss.item()
        assert reads.count == 1


def everything(state):
    """What a step may change."""
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
    assert not step(state, image).skipped  # makes the moments
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
    monkeypatch.setattr(training_loop, "mean_over_processes", lambda loss: loss + torch.nan)
    assert step(state, torch.randn(1, 1, 32, 32, 16)).skipped
    assert all(torch.equal(before[name], value) for name, value in state.network.named_parameters())


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_a_first_step_that_is_skipped_leaves_no_trace(make_state, name):
    """As with --amp fp16, whose scale starts too high."""
    skipped, other = make_state("--optim", name), make_state("--optim", name)
    image = torch.randn(1, 1, 32, 32, 16)
    step(skipped, torch.full_like(image, torch.nan))
    for state in (skipped, other):
        step(state, image)
    for one, two in zip(skipped.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_moments_saved_in_another_layout_are_those_of_the_same_weights(make_state, tmp_path):
    saved, resumed = make_state(), make_state()
    image = torch.randn(1, 1, 32, 32, 16)
    step(saved, image)
    laid_out = copy.deepcopy(saved.optimizer.state_dict())
    for moments in saved.optimizer.state.values():
        moments.update({name: value.contiguous() for name, value in moments.items()})  # as a GPU has them
    saved.save(tmp_path)
    saved.optimizer.load_state_dict(laid_out)
    resumed.restore(tmp_path)
    for state in (saved, resumed):
        step(state, image)
    for one, two in zip(saved.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_checkpointing_reaches_the_network(make_state):
    assert make_state("--checkpointing").network.checkpointing
    assert not make_state().network.checkpointing


@pytest.mark.parametrize("value", [lambda net: next(net.parameters()), lambda net: running_statistics(net)[0]])
def test_weights_that_are_not_finite_are_not_saved(make_state, value):
    state = make_state()
    check_finite(state)
    with torch.no_grad():
        value(state.network).view(-1)[0] = torch.inf
    with pytest.raises(InputError, match="weights that are not finite at iteration 0"):
        check_finite(state)


def log_steps(skipped, progress=None):
    """Log one step for each of ``skipped``; the progress afterwards."""
    log = TrainingLog(None, progress or Progress())
    for iteration, bad in enumerate(skipped, start=1):
        log.add(iteration, Step(torch.tensor(torch.nan if bad else 0.5), torch.tensor(bad)), 1e-4, 0.0, 0.0)
    log.finish()
    return log.progress


def test_skipped_steps_are_counted_and_told(capsys):
    progress = log_steps([False, True, True, False, True])
    assert (progress.skipped, progress.skipped_in_a_row) == (3, 1)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 3
    assert "at iteration 5, 3 steps skipped" in warnings[-1]


def test_too_many_skipped_steps_in_a_row_end_the_run():
    almost = [True] * (SKIPS_IN_A_ROW - 1)
    assert log_steps([*almost, False, *almost]).skipped_in_a_row == SKIPS_IN_A_ROW - 1
    with pytest.raises(InputError, match=f"found {SKIPS_IN_A_ROW} iterations in a row, up to {SKIPS_IN_A_ROW + 1}"):
        log_steps([False, *almost, True])
    with pytest.raises(InputError, match="up to 1,"):  # the others were before the run was resumed
        log_steps([True], Progress(skipped_in_a_row=SKIPS_IN_A_ROW - 1))


def table(*dice):
    """The Dice of one case."""
    made = DiceTable(["left", "right"])
    made.add("case", np.array(dice))
    return made


def test_a_dice_that_is_no_number_is_never_the_best(make_state, tmp_path):
    state = make_state()
    best = tmp_path / "best_metric_model.pth"
    state.progress.iteration = 1
    keep_best(state, table(np.nan, np.nan), tmp_path)
    assert best.exists()  # stands in, so that there is something to predict with
    assert state.progress.best_dice == -math.inf
    for iteration, dice, kept in (
        (2, (0.0, 0.0), 2),
        (3, (np.nan, np.nan), 2),
        (4, (np.nan, 0.5), 4),
        (5, (0.4, 0.5), 4),
    ):
        state.progress.iteration = iteration
        keep_best(state, table(*dice), tmp_path)
        assert state.progress.best_iteration == kept
        assert torch.load(best, weights_only=True)["iteration"] == kept
    assert state.progress.best_dice == 0.5

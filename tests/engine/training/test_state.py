"""State of a training run: saving, restoring, and choosing the best evaluation."""

import copy
import math

import pytest
import torch

from engine.runtime.errors import InputError
from engine.runtime.recipe_arguments import SAMPLING
from engine.training.state import differing_flags
from engine.training.step import running_statistics, train_step


def step(state, image):
    """Train with a loss that depends only on the logits."""
    return train_step(state, lambda logits, _: logits.square().mean(), image, image, 1e-2)


def test_moments_saved_in_another_memory_layout_are_restored(make_state, tmp_path):
    saved, resumed = make_state(), make_state()
    image = torch.randn(1, 1, 32, 32, 16)
    step(saved, image)
    channels_last = copy.deepcopy(saved.optimizer.state_dict())
    for moments in saved.optimizer.state.values():
        moments.update({name: value.contiguous() for name, value in moments.items()})  # as on a GPU
    saved.save(tmp_path)
    saved.optimizer.load_state_dict(channels_last)
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
    state.check_weights()
    with torch.no_grad():
        value(state.network).view(-1)[0] = torch.inf
    with pytest.raises(InputError, match="weights that are not finite at iteration 0"):
        state.check_weights()


def test_a_nan_dice_is_never_the_best(make_state, tmp_path):
    state = make_state()
    best = tmp_path / "best_metric_model.pth"
    state.progress.iteration = 1
    state.keep_best(math.nan, tmp_path)
    assert best.exists()  # saved so that weights for prediction exist
    assert state.progress.best_dice == -math.inf
    for iteration, dice, kept in (
        (2, 0.0, 2),
        (3, math.nan, 2),
        (4, 0.5, 4),
        (5, 0.45, 4),
    ):
        state.progress.iteration = iteration
        state.keep_best(dice, tmp_path)
        assert state.progress.best_iteration == kept
        assert torch.load(best, weights_only=True)["iteration"] == kept
    assert state.progress.best_dice == 0.5


def test_crops_and_augmentation_belong_to_the_recipe_of_a_run(make_state):
    """Checkpoints without these flags are of the paper's crops."""
    flags = make_state().flags
    older = {"args": {name: value for name, value in flags.items() if name not in SAMPLING}}
    assert differing_flags(flags, older) == []
    others = make_state(
        "--crop_balance", "classes", "--foreground_share", "0.7", "--augmentation", "strong", "--mirror"
    )
    assert differing_flags(others.flags, older) == [
        "--crop_balance: found classes, expected voxels as in the run to resume",
        "--foreground_share: found 0.7, expected 0.5 as in the run to resume",
        "--augmentation: found strong, expected paper as in the run to resume",
        "--mirror: found RL AP IS, expected none given as in the run to resume",
    ]

"""State of a training run: saving, restoring, and choosing the best evaluation."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from engine.runtime.errors import InputError
from engine.runtime.recipe_arguments import SAMPLING
from engine.training.loss import make_loss
from engine.training.state import NEWER_FLAGS, TrainingState, differing_flags
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


def test_deep_supervision_trains_the_coarser_heads_and_evaluates_one(make_state):
    plain = make_state()
    flags = {**plain.flags, "network": "STUNet_S", "deep_supervision": True, "ema": 0.5}
    config = replace(plain.config, network="STUNet_S", roi_size=(32, 32, 64), overrides={"feat_size": [4] * 6})
    state = TrainingState(flags, config, plain.description, plain.split, plain.device)
    image = torch.randn(1, 1, 32, 32, 64)
    label = torch.randint(3, image.shape, dtype=torch.uint8)
    head = state.network.seg_outputs[1].weight.detach().clone()
    assert not train_step(state, make_loss(False, deep_supervision=True), image, label, 1e-2).skipped
    assert not torch.equal(head, state.network.seg_outputs[1].weight)
    assert not torch.equal(head, state.evaluated_network.seg_outputs[1].weight)
    assert state.evaluated_network.eval()(image).shape == (1, 3, 32, 32, 64)


def test_deep_supervision_of_a_network_without_is_refused(make_state):
    with pytest.raises(InputError, match=r"--deep_supervision: found --network REP3D .*, expected one of nnUNet, Med"):
        make_state("--deep_supervision")


def test_runs_of_earlier_versions_have_none_of_the_newer_flags(make_state):
    flags = make_state().flags
    earlier = {name: value for name, value in flags.items() if name not in NEWER_FLAGS}
    assert differing_flags(flags, {"args": earlier}) == []
    changed = {"ema": 0.9, "accumulate": 2, "deep_supervision": True}
    found = differing_flags({**flags, **changed}, {"args": earlier})
    assert [line.partition(":")[0] for line in found] == ["--accumulate", "--ema", "--deep_supervision"]


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

"""Runs and checkpoints of older versions, in which every learned mask was additive and no flag existed to say so."""

import signal

import pytest
import torch
from conftest import assert_one_line, train_arguments

from engine.training import step
from engine.weights.checkpoints import config_of, load_checkpoint
from engine.weights.load_weights import load_weights

LAST, BEST = "last_checkpoint.pth", "best_metric_model.pth"
ADDITIVE = ("--network_args", "correction=additive")


FLAGS = ("--max_iter", "3", "--eval_step", "1")


@pytest.fixture
def former(boxes, tmp_path, train, monkeypatch):
    """Folder of a run that was stopped after two of three iterations, as it was written then."""

    def stop_in_the_second(learner, *args):
        if learner.iteration == 1:
            signal.raise_signal(signal.SIGTERM)
        return train_step(learner, *args)

    output, train_step = tmp_path / "run", step.train_step
    with monkeypatch.context() as patch:
        patch.setattr(step, "train_step", stop_in_the_second)
        assert train(*train_arguments(boxes, output, *FLAGS, *ADDITIVE))[0] == 75
    for name in (LAST, BEST):
        content = torch.load(output / name, weights_only=True)
        del content["config"]["overrides"]["correction"]
        if name == LAST:
            content["args"]["network_args"] = None
            del content["args"]["mask_lr_factor"]
            for group in content["optimizer"]["param_groups"]:
                del group["rate_factor"]
        torch.save(content, output / name)
    return output


def test_its_network_is_built_with_its_masks(former):
    content = load_checkpoint(former / BEST, "--run")
    config, _ = config_of(content, former / BEST, "--run")
    assert config.overrides["correction"] == "additive"
    load_weights(config.build(), content, "--run", strict=True)


def test_it_predicts(former, boxes, tmp_path, predict):
    status, out, err = predict(
        "--root", boxes, "--output", tmp_path / "out", "--trained_weights", former / BEST, "--gpu", "cpu"
    )
    assert status == 0, err
    assert "mean" in out


def test_it_is_resumed_with_the_flag_that_its_message_names(former, boxes, train):
    command = train_arguments(boxes, former, *FLAGS)
    expected = 'expected correction="additive" as in the run to resume'
    assert_one_line(train(*command, "--resume"), "--network_args: found none given", expected)
    status, _, err = train(*command, *ADDITIVE, "--resume")
    assert status == 0, err
    assert torch.load(former / LAST, weights_only=True)["iteration"] == 3


def test_it_starts_a_network_with_gated_masks(former, boxes, tmp_path, train):
    pretrain = ("--max_iter", "1", "--eval_step", "1", "--pretrain", "True", "--pretrained_weights", former / BEST)
    status, out, err = train(*train_arguments(boxes, tmp_path / "other", *pretrain))
    assert status == 0, err
    assert "other masks, 8 of them folded into the kernels" in out

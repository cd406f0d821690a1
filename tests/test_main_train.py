"""The recipe of main_train.py."""

import torch
from conftest import train_arguments
from monai.losses import DiceCELoss

from engine.training import step as training_step


def test_the_loss_is_dice_and_cross_entropy(box_template, tmp_path, train, monkeypatch):
    def record(learner, criterion, *rest):
        criteria.append(criterion)
        return train_step(learner, criterion, *rest)

    criteria, train_step = [], training_step.train_step
    monkeypatch.setattr(training_step, "train_step", record)
    assert train(*train_arguments(box_template, tmp_path / "run", "--max_iter", "1"))[0] == 0
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(3, (2, 1, 4, 4, 4))
    assert torch.equal(criteria[0](logits, label), DiceCELoss(to_onehot_y=True, softmax=True)(logits, label))


def test_an_empty_cache_dir_is_none(box_template, tmp_path, train, monkeypatch):
    """As from an unset variable of a shell script."""
    monkeypatch.chdir(tmp_path)
    assert train(*train_arguments(box_template, tmp_path / "run", "--max_iter", "1", "--cache_dir", ""))[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_strong_augmentation_trains_and_mirrored_sides_are_warned_of(box_template, tmp_path, train):
    beyond = ("--augmentation", "strong", "--crop_balance", "classes", "--foreground_share", "0.9", "--mirror", "RL")
    status, out, _ = train(*train_arguments(box_template, tmp_path / "run", "--max_iter", "1", *beyond))
    assert status == 0
    assert "warning: --mirror: RL exchanges left and right, which leaves left, right without a side" in out

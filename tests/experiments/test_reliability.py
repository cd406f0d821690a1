"""The comparison of ``make soak`` finds every difference, and the soak itself runs with one stop."""

import json
import shutil

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from experiments.reliability import soak
from experiments.reliability.compare import differences


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def change(path, apply):
    content = torch.load(path, weights_only=True)
    apply(content)
    torch.save(content, path)


def test_a_run_does_not_differ_from_itself(trained, copy):
    assert differences(trained, copy) == []


def add_one_bit(content):
    weight = content["model"]["out.conv.conv.weight"]
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(torch.inf))


CHANGES = {
    "weight": ("best_metric_model.pth", add_one_bit, "best_metric_model.pth: model"),
    "moment": (
        "last_checkpoint.pth",
        lambda content: content["optimizer"]["state"][0]["exp_avg"].view(-1)[:1].add_(1),
        "last_checkpoint.pth: optimizer",
    ),
    "score": (
        "last_checkpoint.pth",
        lambda content: content["progress"].update(best_iteration=0),
        "last_checkpoint.pth: progress",
    ),
}


@pytest.mark.parametrize(("name", "apply", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_in_a_checkpoint_is_seen(trained, copy, name, apply, expected):
    change(copy / name, apply)
    (found,) = differences(trained, copy)
    assert found.startswith(expected)


@pytest.mark.parametrize(("step", "expected"), [(60, "train/loss at steps"), (61, "train/loss at steps")])
def test_a_step_too_many_is_seen(trained, copy, step, expected):
    with SummaryWriter(str(copy / "tensorboard")) as writer:
        writer.add_scalar("train/loss", 0.5, step)
    assert [expected in found for found in differences(trained, copy)] == [True]


@pytest.mark.slow
def test_one_stop_of_the_soak(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "RECIPE", (*soak.RECIPE, "--max_iter", "6", "--eval_step", "3"))
    soak.main(soak.parse_args(["--kills", "1", "--result", str(tmp_path / "soak.json")]))
    result = json.loads((tmp_path / "soak.json").read_text())
    assert sum(result["stops"].values()) == 1
    assert all(end["differences"] == [] for end in result["runs"])  # more than one if the first ended by itself

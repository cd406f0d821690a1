"""Validation of all cases or of a seeded part of them, and the share of the time that it takes."""

import json
import shutil

import pytest
import torch
from conftest import TRAINED, assert_one_line, train_arguments, wait_for_the_next_second
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.runtime.distributed import shard
from engine.runtime.errors import InputError
from engine.training import validation
from engine.training.state import Progress
from engine.training.validation import put_chosen_first

CASES = [{"id": f"case_{number:02d}"} for number in range(20)]


def test_chosen_cases_come_first_and_depend_on_the_seed_alone():
    found = put_chosen_first(CASES, 5, seed=3)
    assert sorted(found, key=lambda case: case["id"]) == CASES
    for part in (found[:5], found[5:]):
        assert part == sorted(part, key=lambda case: case["id"])
    assert found == put_chosen_first(CASES, 5, seed=3)
    assert found[:5] != put_chosen_first(CASES, 5, seed=4)[:5]
    assert found[:5] != CASES[:5]
    assert put_chosen_first(CASES, None, seed=3) == put_chosen_first(CASES, 20, seed=3) == CASES


@pytest.mark.parametrize(("processes", "shares"), [(2, [3, 2]), (8, [1, 1, 1, 1, 1, 0, 0, 0])])
def test_processes_share_the_chosen_cases_evenly(monkeypatch, processes, shares):
    found = put_chosen_first(CASES, 5, seed=3)
    monkeypatch.setattr("engine.runtime.distributed.process_count", lambda: processes)
    for rank, share in enumerate(shares):
        monkeypatch.setattr("engine.runtime.distributed.process_rank", lambda rank=rank: rank)
        assert len(shard(found[:5])) == share
        assert shard(found)[:share] == shard(found[:5])


def test_more_cases_than_there_are_are_refused(box_template, tmp_path, train):
    with pytest.raises(InputError, match="--val_cases: found 21, expected at most the 20 validation cases"):
        put_chosen_first(CASES, 21, seed=0)
    result = train(*train_arguments(box_template, tmp_path / "run", "--val_cases", "3"))
    assert_one_line(result, "--val_cases: found 3, expected at most the 2 validation cases")
    assert not list((tmp_path / "run").iterdir())


def scalars(folder):
    log = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: {event.step: event.value for event in log.Scalars(name)} for name in log.Tags()["scalars"]}


def progress_of(folder):
    return torch.load(folder / "last_checkpoint.pth", weights_only=True)["progress"]


def test_the_best_is_chosen_by_the_same_cases_and_all_are_scored_at_the_end(box_template, tmp_path, train, monkeypatch):
    """The mean over all cases of the last evaluation takes no part in the choice."""

    def score(prediction, label, structures):
        scored.append(label)
        return dice_by_structure(prediction, label, structures)

    scored, dice_by_structure = [], validation.dice_by_structure
    monkeypatch.setattr(validation, "dice_by_structure", score)
    more = ("--val_cases", "1", "--max_iter", "6", "--seed", "3")
    status, out, _ = train(*train_arguments(box_template, tmp_path, *more))
    assert status == 0
    assert len(scored) == 1 + 1 + 2
    cases = json.loads((tmp_path / "dice.json").read_text())["cases"]
    (chosen,) = put_chosen_first([{"id": "box_8"}, {"id": "box_9"}], 1, seed=3)[:1]
    assert chosen["id"] == "box_9"  # and comes first in the training
    logged = scalars(tmp_path)
    assert logged["dice/mean"].keys() == {2, 4, 6}
    assert logged["dice/mean"][6] == pytest.approx(cases[chosen["id"]]["mean"], abs=1e-5)
    assert logged["dice_all/mean"].keys() == {6}
    assert list(cases) == ["box_8", "box_9"]
    assert progress_of(tmp_path)["best_dice"] == pytest.approx(max(logged["dice/mean"].values()), abs=1e-6)
    assert f"all 2 validation cases: mean Dice {logged['dice_all/mean'][6]:.4f}" in out


def test_without_the_flag_all_cases_are_always_scored(trained):
    assert not any(name.startswith("dice_all") for name in scalars(trained))
    assert sorted(json.loads((trained / "dice.json").read_text())["cases"]) == ["box_8", "box_9"]


def test_the_share_of_the_time_is_printed_logged_and_goes_on_after_resuming(box_template, tmp_path, train, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(validation, "dice_by_structure", stop)
        assert train(*train_arguments(box_template, tmp_path))[0] == 130
    before = progress_of(tmp_path)
    assert before["training_s"] > 0
    assert before["validation_s"] == 0  # an evaluation that is repeated does not count
    wait_for_the_next_second()
    status, out, _ = train(*train_arguments(box_template, tmp_path), "--resume")
    assert status == 0
    after = Progress(**progress_of(tmp_path))
    assert after.training_s > before["training_s"]
    logged = scalars(tmp_path)["time/validation_share"]
    assert logged.keys() == {2, 4}
    share = after.validation_s / (after.training_s + after.validation_s)
    assert 0 < share < 1
    assert logged[4] == pytest.approx(share, rel=1e-5)
    assert f"best {after.best_dice:.4f}; {share:.0%} of the time validating" in out


def test_progress_of_earlier_versions_has_no_seconds():
    assert Progress(iteration=4).validation_share == 0
    assert Progress(training_s=3.0, validation_s=1.0).validation_share == pytest.approx(0.25)
    with pytest.raises(TypeError):
        Progress(training_s="3").check()


@pytest.fixture
def finished(trained, tmp_path):
    """Copy of a finished run."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("flags", [("--val_cases", "1"), ("--overlap", "0.5")])
def test_a_resumed_run_compares_the_same_means(box_template, finished, train, flags):
    result = train(*train_arguments(box_template, finished, *TRAINED, *flags), "--resume")
    assert_one_line(result, f"{flags[0]}: found {flags[1]}, expected", "as in the run to resume")


def test_the_overlap_is_the_published_one_and_older_runs_keep_theirs(box_template, finished, train):
    checkpoint = finished / "last_checkpoint.pth"
    content = torch.load(checkpoint, weights_only=True)
    assert content["args"]["overlap"] == 0.25
    content["args"]["overlap"] = 0.5
    for name in ("training_s", "validation_s"):
        del content["progress"][name]
    del content["args"]["val_cases"]
    torch.save(content, checkpoint)
    words = train_arguments(box_template, finished, *TRAINED)
    assert_one_line(train(*words, "--resume"), "--overlap: found 0.25, expected 0.5 as in the run to resume")
    assert train(*words, "--overlap", "0.5", "--resume")[0] == 0

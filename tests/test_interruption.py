"""A run that is stopped, killed or damaged anywhere ends with the weights, scores and logs of an undisturbed run."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY, train_arguments, train_here, wait_for_iteration, wait_for_the_next_second
from monai.data import CacheDataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from engine.runtime import files
from engine.training import log, validation
from engine.training import step as training_step
from engine.training.state import TrainingState
from engine.weights import checkpoints
from experiments.reliability.compare import differences

MORE = ("--max_iter", "6", "--eval_step", "3", "--num_workers", "1")
LAST, PREVIOUS, BEST = "last_checkpoint.pth", "previous_checkpoint.pth", "best_metric_model.pth"


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def whole(box_template, tmp_path_factory):
    """Output folder of an undisturbed run."""
    output = tmp_path_factory.mktemp("whole")
    assert train_here(*train_arguments(box_template, output, *MORE)) == 0
    return output


def start(boxes, output, *more):
    arguments = [str(word) for word in train_arguments(boxes, output, *MORE, *more)]
    return subprocess.Popen(
        [sys.executable, "main_train.py", *arguments],
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_and_prints_the_resume_command(boxes, tmp_path, train, number):
    """Batch systems and terminals send it like this, to the data-loading processes as well."""
    output = tmp_path / "run"
    process = start(boxes, output, "--max_iter", "2000", "--eval_step", "5")
    wait_for_iteration(output / LAST, 5)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    (line,) = [line for line in err.splitlines() if line.startswith("stopped by")]
    saved = load(output / LAST)
    reason = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert line.startswith(f"stopped by {reason}")
    assert f"at iteration {saved['iteration']}, go on with: " in line or saved["progress"]["awaits_evaluation"]
    assert line.endswith(" --resume")
    assert saved["iteration"] >= 5
    assert "Traceback" not in err
    logged = EventAccumulator(str(output / "tensorboard")).Reload().Scalars("train/loss")
    assert [event.step for event in logged] == list(range(1, saved["iteration"] + 1))


@pytest.mark.parametrize("moment", ["set-up", "step", "validation"])
def test_a_request_stops_and_resumes_anywhere(whole, box_template, tmp_path, train, monkeypatch, moment):
    def ask(*args, **kwargs):
        setattr(module, name, original)
        signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    module, name = {
        "set-up": (log, "StepMonitor"),
        "step": (training_step, "train_step"),
        "validation": (validation, "dice_by_structure"),
    }[moment]
    original = getattr(module, name)
    monkeypatch.setattr(module, name, ask)
    arguments = train_arguments(box_template, tmp_path, *MORE)
    status, _, err = train(*arguments)
    assert status == 75
    stopped = "SIGTERM" if moment == "validation" else "SIGTERM at iteration 1"
    assert f"stopped by {stopped}, go on with: " in err
    assert err.endswith(" --resume\n")
    assert load(tmp_path / LAST)["progress"]["awaits_evaluation"] == (moment == "validation")
    assert train(*arguments, "--resume")[0] == 0
    assert differences(whole, tmp_path) == []


def test_a_request_before_training_stops_at_once(box_template, tmp_path, train, monkeypatch):
    monkeypatch.setattr("engine.data.dataset_checks.check_cases", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    status, _, err = train(*train_arguments(box_template, tmp_path))
    assert status == 75
    assert err.splitlines()[-1].startswith("stopped by SIGTERM, go on with: ")
    assert "--resume" not in err  # nothing to resume yet
    assert not list(tmp_path.iterdir())


def test_a_request_while_cases_are_cached_stops_before_the_first_step(box_template, tmp_path, train, monkeypatch):
    def ask(*args):
        signal.raise_signal(signal.SIGTERM)  # in a thread; the main thread receives it
        return load_case(*args)

    load_case = CacheDataset._load_cache_item
    monkeypatch.setattr(CacheDataset, "_load_cache_item", ask)
    monkeypatch.setattr(training_step, "train_step", None)
    status, _, err = train(*train_arguments(box_template, tmp_path))
    assert status == 75
    assert err.splitlines()[-1].startswith("stopped by SIGTERM, go on with: ")
    assert load(tmp_path / LAST)["iteration"] == 0


def test_a_request_while_the_first_checkpoint_is_written_waits_only_for_it(
    whole, box_template, tmp_path, train, monkeypatch
):
    def ask(*args):
        torch.save = save
        signal.raise_signal(signal.SIGTERM)
        return save(*args)

    save = torch.save
    monkeypatch.setattr(torch, "save", ask)
    arguments = train_arguments(box_template, tmp_path, *MORE)
    status, _, err = train(*arguments)
    assert status == 75
    assert err.endswith(" --resume\n")
    assert load(tmp_path / LAST)["iteration"] == 0
    assert train(*arguments, "--resume")[0] == 0
    assert differences(whole, tmp_path) == []


def stop_and_resume(train, monkeypatch, root, folder, flags):
    """Train once undisturbed in "whole"; once in "cut", stopped by SIGTERM in its first step and resumed."""

    def ask(*args):
        signal.raise_signal(signal.SIGTERM)
        return step(*args)

    step = training_step.train_step
    whole, cut = (train_arguments(root, folder / name, *MORE, *flags) for name in ("whole", "cut"))
    assert train(*whole)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "train_step", ask)
        assert train(*cut)[0] == 75
    assert train(*cut, "--resume")[0] == 0


def test_a_run_from_other_weights_is_resumed_by_the_same_command(box_template, trained, tmp_path, train, monkeypatch):
    pretrain = ("--pretrain", "True", "--pretrained_weights", trained / BEST)
    stop_and_resume(train, monkeypatch, box_template, tmp_path, pretrain)
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


def test_a_run_with_two_learning_rates_is_resumed_identically(box_template, tmp_path, train, monkeypatch):
    """The masks' parameters are a group of their own in the optimiser; a resumed run writes its snapshots as well."""
    flags = ("--network", "REP3D", "--mask_lr_factor", "0.1", "--snapshot_step", "3")
    stop_and_resume(train, monkeypatch, box_template, tmp_path, flags)
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    for iteration in (3, 6):
        models = [load(tmp_path / name / f"weights_{iteration}.pth")["model"] for name in ("whole", "cut")]
        assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())
    assert all(torch.equal(value, load(tmp_path / "whole" / LAST)["model"][key]) for key, value in models[0].items())


KILLED = """
import os, signal, sys
from pkgutil import resolve_name
import main_train
from engine.runtime.errors import run

owner, name, count = sys.argv.pop(1).split()
owner, count = resolve_name(owner), int(count)
original = getattr(owner, name)

def die(*args, **kwargs):
    global count
    count -= 1
    if count == 0:
        if name == "save":  # in the middle of the file
            args[1].write(b"half a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(owner, name, die)
sys.exit(run(main_train.main, main_train.parse_args(sys.argv[1:])))
"""


@pytest.mark.parametrize(
    "moment",
    [
        "engine.training.step train_step 5",
        pytest.param("engine.training.validation dice_by_structure 3", marks=pytest.mark.slow),
        "torch save 4",  # 1 at the start, 2 before the first validation, 3 the best weights
        pytest.param("engine.training.log:TensorBoardLog figure 2", marks=pytest.mark.slow),
    ],
)
def test_killed_at(whole, box_template, tmp_path, train, moment):
    """Kill the process by a real SIGKILL, after which no code runs."""
    arguments = [str(word) for word in train_arguments(box_template, tmp_path, *MORE)]
    words = [sys.executable, "-c", KILLED, moment, *arguments]
    killed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    wait_for_the_next_second()
    assert train(*arguments, "--resume")[0] == 0
    assert differences(whole, tmp_path) == []


def test_logs_are_written_before_the_checkpoint(box_template, tmp_path, train, monkeypatch):
    """TensorBoard writes logs from a queue, which is slow here."""

    def write_late(self, data):
        time.sleep(0.05)
        write(self, data)

    def save_after_check(state, output):
        if state.iteration:
            log = EventAccumulator(str(output / "tensorboard")).Reload()
            assert len(log.Scalars("train/loss")) == state.iteration
        save(state, output)

    write, save = RecordWriter.write, TrainingState.save
    monkeypatch.setattr(RecordWriter, "write", write_late)
    monkeypatch.setattr(TrainingState, "save", save_after_check)
    assert train(*train_arguments(box_template, tmp_path, *MORE))[0] == 0


def test_max_hours_stop_between_two_steps(whole, box_template, tmp_path, train, monkeypatch):
    def take_long(state, *rest):
        if state.iteration == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # the rest of --max_hours
            time.sleep(0.1)
        return step(state, *rest)

    step = training_step.train_step
    arguments = train_arguments(box_template, tmp_path, *MORE, "--max_hours", "1")
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "train_step", take_long)
        status, _, err = train(*arguments)
    assert status == 75
    assert "stopped by --max_hours at iteration 2, go on with: " in err
    assert train(*arguments, "--resume")[0] == 0
    assert differences(whole, tmp_path) == []


class Killed(BaseException):
    """Simulated kill: it is not caught, and no clean-up runs (see ``kill_at``)."""


def kill_at(monkeypatch, module, name, count):
    """Raise Killed in the ``count``-th call of a function, after which no file is changed."""

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            monkeypatch.setattr(files.Path, "unlink", lambda *_, **__: None)
            raise Killed
        return original(*args, **kwargs)

    calls, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, call)


# The renames of a run: 1 arguments, 2 versions, 3 first checkpoint; at an evaluation, 4 turns it into the previous
# checkpoint, 5 is the new checkpoint, 6 the best weights, 7 and 8 the tables of Dice, 9 and 10 the checkpoint after it.
@pytest.mark.parametrize(
    ("count", "gap"),
    [
        (4, False),
        (5, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((6, False), (7, False), (9, False), (10, True))),
    ],
)
def test_killed_before_a_rename(whole, box_template, tmp_path, train, monkeypatch, count, gap):
    arguments = train_arguments(box_template, tmp_path, *MORE)
    with monkeypatch.context() as patch:
        kill_at(patch, files.os, "replace", count)
        with pytest.raises(Killed):
            train(*arguments)
    assert list(tmp_path.glob(".*.part"))
    assert (tmp_path / LAST).exists() != gap
    status, out, _ = train(*arguments, "--resume")
    assert status == 0
    assert (f"going on from {tmp_path / PREVIOUS}" in out) == gap
    assert differences(whole, tmp_path) == []
    assert not list(tmp_path.glob(".*"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    """Flip a bit in the middle of a tensor, where only a checksum shows it."""
    content = bytearray(path.read_bytes())
    content[content.index(load(path)["model"]["out.conv.conv.weight"].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)


def overwrite(path):
    path.write_bytes(b"\0" * path.stat().st_size)


DAMAGES = {"cut": cut, "bit": flip_a_bit, "zeros": overwrite, "empty": lambda path: path.write_bytes(b"")}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(whole, box_template, tmp_path, train, damage):
    output = shutil.copytree(whole, tmp_path / "run")
    damage(output / LAST)
    status, out, _ = train(*train_arguments(box_template, output, *MORE), "--resume")
    assert status == 0
    (line,) = [line for line in out.splitlines() if line.startswith("--resume")]
    assert str(output / LAST) in line
    assert line.endswith(f"going on from {output / PREVIOUS}, iteration 6")
    assert (output / "damaged_checkpoint.pth").exists()
    assert differences(whole, output) == []


def test_the_previous_checkpoint_may_be_iterations_older(whole, box_template, tmp_path, train, monkeypatch):
    def ask(state, *rest):
        if state.iteration == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(state, *rest)

    step = training_step.train_step
    arguments = train_arguments(box_template, tmp_path, *MORE)
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "train_step", ask)
        assert train(*arguments)[0] == 75
    assert [load(tmp_path / name)["iteration"] for name in (LAST, PREVIOUS)] == [5, 3]
    cut(tmp_path / LAST)
    status, out, _ = train(*arguments, "--resume")
    assert status == 0
    assert f"going on from {tmp_path / PREVIOUS}, iteration 3" in out
    assert differences(whole, tmp_path) == []


def test_a_checkpoint_that_does_not_fit_in_memory_is_not_called_damaged(whole, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    output = shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RuntimeError, match="allocate memory"):
        checkpoints.load_last_good(output, "--resume")
    assert (output / LAST).exists()


def change_progress(content):
    content["progress"]["mood"] = "good"


ODD_STATES = {
    "progress of another version": change_progress,
    "no arguments": lambda content: content.update(args=[]),
    "no optimiser": lambda content: content.update(optimizer={}),
}


@pytest.mark.parametrize("change", ODD_STATES.values(), ids=ODD_STATES)
def test_a_state_of_another_version_is_one_line(whole, box_template, tmp_path, train, change):
    output = shutil.copytree(whole, tmp_path / "run")
    content = load(output / LAST)
    change(content)
    torch.save(content, output / LAST)
    status, _, err = train(*train_arguments(box_template, output, *MORE), "--resume")
    assert (status, err.count("\n")) == (2, 1)
    assert "no training state of this version" in err


def test_two_damaged_checkpoints_are_one_line(whole, box_template, tmp_path, train):
    output = shutil.copytree(whole, tmp_path / "run")
    cut(output / LAST)
    cut(output / PREVIOUS)
    status, _, err = train(*train_arguments(box_template, output, *MORE), "--resume")
    assert (status, err.count("\n")) == (2, 1)
    assert f"{output / PREVIOUS} is damaged" in err
    assert (output / LAST).exists()


def test_a_checkpoint_on_a_bad_sector_counts_as_damaged(whole, tmp_path, monkeypatch, capsys):
    output = shutil.copytree(whole, tmp_path / "run")
    load_file = torch.load

    def fail(path, **options):
        if path == output / LAST:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return load_file(path, **options)

    monkeypatch.setattr(torch, "load", fail)
    assert checkpoints.load_last_good(output, "--resume")["iteration"] == 6
    assert f"{output / LAST} cannot be read (Input/output error)" in capsys.readouterr().out
    assert (output / "damaged_checkpoint.pth").exists()


def test_a_checkpoint_without_read_permission_is_kept(whole, tmp_path, monkeypatch):
    output = shutil.copytree(whole, tmp_path / "run")

    def fail(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(checkpoints.InputError, match="cannot be read"):
        checkpoints.load_last_good(output, "--resume")
    assert (output / LAST).exists()
    assert (output / PREVIOUS).exists()

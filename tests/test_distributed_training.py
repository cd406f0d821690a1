"""Two processes of torchrun on the CPU train and predict like one with twice the batch."""

import json
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_box_case, train_arguments
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_train
import test_seg as predict_script
from engine.data.loading import EndlessBatches, derive_seed, seed_iteration
from engine.runtime.errors import run

# Plain SGD: AdamW is invariant to the scale of gradients, which hides a sum in place of a mean, and amplifies rounding.
# With this seed six iterations find both boxes.
RECIPE = (
    *("--optim", "SGD", "--lr", "0.1", "--sync_batchnorm", "--max_iter", "6", "--eval_step", "3", "--seed", "3"),
    *("--val_cases", "2"),
)
TOLERANCE = 1e-3  # relative, of losses; one process with two threads instead of one differs by 3e-4 from itself
BEST, LAST, PREVIOUS = "best_metric_model.pth", "last_checkpoint.pth", "previous_checkpoint.pth"

# Script for torchrun: runs the scripts one after the other, since each start of PyTorch takes seconds.
SEVERAL = """
import faulthandler, json, signal, sys, time
from functools import partial
from unittest.mock import patch
import torch.distributed as dist
import main_train, test_seg
from engine.data import cache
from engine.prediction import predict_cases
from engine.training import step as training_step
from engine.runtime.errors import Stopped, run

faulthandler.dump_traceback_later(240, exit=True)  # says where two processes wait for each other in vain

digest_cases, whole_step = cache.digest_cases, training_step.train_step

def digest_late(*args):
    digests = digest_cases(*args)
    time.sleep(1)
    return digests

def train_until_one_is_asked_to_stop(args):
    def step(state, *rest):
        if state.iteration == 3 and dist.get_rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        return whole_step(state, *rest)
    training_step.train_step = step
    try:
        main_train.main(args)
    except Stopped as stop:
        print(f"stopped by {stop}\\n", end="", flush=True)  # in one write, even without buffering
    # Not while the exception holds the network: a DistributedDataParallel that is freed after its group waits for the
    # threads of gloo with the GIL held, and one of them may need the GIL to free a tensor of the last gathering.
    dist.destroy_process_group()
    training_step.train_step = whole_step

def predict_without_a_record(args):
    with patch.object(predict_cases, "record_written"):
        test_seg.main(args)

MAINS = {
    "stop": train_until_one_is_asked_to_stop, "train": main_train.main, "predict": test_seg.main,
    "predict unrecorded": predict_without_a_record,
}
store, rank, size = next(dist.rendezvous("env://"))
if rank == 0:
    cache.digest_cases = digest_late  # process 0 must report the state before the other process writes entries
init = dist.init_process_group
for number, (what, *words) in enumerate(json.loads(sys.argv[1])):
    # Each process group gets its own prefix in the shared store.
    dist.init_process_group = partial(init, store=dist.PrefixStore(str(number), store), rank=rank, world_size=size)
    parse_args = (test_seg if what.startswith("predict") else main_train).parse_args
    if status := run(MAINS[what], parse_args(words)):
        sys.exit(status)
"""


def plain(*words):
    return [str(word) for word in words]


def prediction_arguments(runs, output, *images):
    weights = ("--trained_weights", runs / "two" / BEST, "--output", output)
    return plain(*images, *weights, "--gpu", "cpu", "--num_workers", "0")


@pytest.fixture(scope="module")
def data(box_template, tmp_path_factory):
    """Three training and three validation cases, which do not divide evenly between two processes."""
    root = Path(shutil.copytree(box_template, tmp_path_factory.mktemp("data") / "boxes"))
    make_box_case(root, "Val", "box_7", 7)
    return root


@pytest.fixture(scope="module")
def damaged(data):
    """The same data with an unreadable case, which is in the shard of the second process."""
    root = Path(shutil.copytree(data, data.parent / "damaged"))
    (root / "imagesTr" / "box_1.nii.gz").write_bytes(b"no gzip")
    return root


@pytest.fixture(scope="module")
def runs(data, damaged, tmp_path_factory):
    """Folder with the results of two processes and of one process for the same data."""
    folder = tmp_path_factory.mktemp("runs")
    half = train_arguments(data, folder / "two", *RECIPE, "--batch_size", "1", "--cache_dir", folder / "cache")
    one_file = ("--images", data / "imagesVal" / "box_8.nii.gz")
    steps = [
        ["stop", *plain(*half)],
        ["train", *plain(*half), "--resume"],
        ["predict", *prediction_arguments(folder, folder / "predictions of two", "--root", data)],
        ["predict", *prediction_arguments(folder, folder / "prediction of a file", *one_file)],
        ["predict unrecorded", *prediction_arguments(folder, folder / "killed", "--root", data)],
        ["train", *plain(*train_arguments(damaged, folder / "none"))],
    ]
    script = folder / "several.py"
    script.write_text(SEVERAL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*torchrun, script, json.dumps(steps)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    (folder / "status").write_text(str(result.returncode))
    (folder / "out").write_text(result.stdout)
    (folder / "err").write_text(result.stderr)
    assert "Timeout (" not in result.stderr, result.stderr
    assert (folder / "prediction of a file" / "dice.json").exists(), result.stderr
    whole = train_arguments(data, folder / "one", *RECIPE, "--batch_size", "2")
    assert run(main_train.main, main_train.parse_args(plain(*whole))) == 0
    words = prediction_arguments(folder, folder / "predictions of one", "--root", data)
    assert run(predict_script.main, predict_script.parse_args(words)) == 0
    return folder


def scalars(folder):
    """Read TensorBoard's scalars: name -> (iteration, value) pairs."""
    log = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in log.Scalars(name)] for name in log.Tags()["scalars"]}


def test_interrupted_and_resumed_pair_has_the_loss_curve_of_one_with_twice_the_batch(runs):
    two, one = (scalars(runs / name)["train/loss"] for name in ("two", "one"))
    assert [step for step, _ in two] == [step for step, _ in one] == list(range(1, 7))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=TOLERANCE)
    assert one[-1][1] < one[0][1]


def test_a_request_to_one_process_stops_both_after_the_same_step(runs):
    """The request comes in the fourth step, and reaches both processes after the fifth."""
    lines = [line for line in (runs / "out").read_text().splitlines() if line.startswith("stopped by")]
    assert sorted(line.partition(", go on")[0] for line in lines) == [
        "stopped by SIGTERM at iteration 5",
        "stopped by a request to another process at iteration 5",
    ]


def test_pair_validates_like_one(runs):
    two, one = (scalars(runs / name) for name in ("two", "one"))
    for name in ("dice/mean", "dice/left", "dice/right", "dice_all/mean"):
        assert dict(two[name]) == pytest.approx(dict(one[name]), abs=1e-3)
    assert max(dict(one["dice/mean"]).values()) > 0.5
    assert dict(one["dice_all/mean"]).keys() == {6}
    tables = [(runs / name / "dice.csv").read_text().splitlines() for name in ("two", "one")]
    cases = [[line.partition(",")[0] for line in table] for table in tables]
    assert cases == [["case", "box_7", "box_8", "box_9", "mean"]] * 2


def test_pair_ends_with_the_weights_of_one(runs):
    two, one = (torch.load(runs / name / LAST, weights_only=True)["model"] for name in ("two", "one"))
    assert list(two) == list(one)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-2, atol=1e-3, msg=lambda text, name=name: name + text)


def test_one_process_writes_and_prints(runs):
    assert {path.name for path in (runs / "two").iterdir()} == {path.name for path in (runs / "one").iterdir()}
    assert not list((runs / "two").rglob("*.part"))
    assert len(list((runs / "two" / "tensorboard").iterdir())) == 2  # one until the interruption, one after it
    lines = (runs / "out").read_text().splitlines()
    assert sum(line.startswith("boxes: 3 training") for line in lines) == 2
    # Both processes share one cache, which is filled for training and for validation.
    assert sum(line.startswith("--cache_dir: 3 of 3 cases") for line in lines) == 2
    assert sum(line.startswith(f"3 predictions in {runs / 'predictions of two'}") for line in lines) == 1


def test_pair_predicts_like_one(runs):
    two, one = runs / "predictions of two", runs / "predictions of one"
    names = {path.name for path in one.iterdir()}
    assert names == {f"box_{number}_seg.nii.gz" for number in (7, 8, 9)} | {"dice.csv", "dice.json", "settings.json"}
    assert {path.name for path in two.iterdir()} == names
    for name in names:
        assert (two / name).read_bytes() == (one / name).read_bytes()


def test_predictions_of_a_killed_pair_are_its_own(runs, data, predict):
    """Killed before the end, they are known by the journals of both processes."""
    killed = runs / "killed"
    assert {path.name for path in killed.glob(".written*")} == {".written_0.jsonl", ".written_1.jsonl"}
    status, out, _ = predict(*prediction_arguments(runs, killed, "--root", data))
    assert status == 0
    assert "3 of 3 predictions are finished already" in out
    for path in (runs / "predictions of one").iterdir():
        assert (killed / path.name).read_bytes() == path.read_bytes()
    assert not list(killed.glob(".written*"))


def test_process_without_a_case_waits_for_the_other(runs):
    whole, alone = (
        json.loads((runs / name / "dice.json").read_text())["cases"]
        for name in ("predictions of one", "prediction of a file")
    )
    assert alone == {"box_8": whole["box_8"]}


def test_mistake_found_by_the_second_process_is_one_line(runs):
    assert (runs / "status").read_text() == "1"  # of torchrun itself
    lines = [line for line in (runs / "err").read_text().replace("\r", "\n").splitlines() if "error: /" in line]
    assert len(lines) == 1, lines
    assert "damaged/imagesTr/box_1.nii.gz: cannot be read" in lines[0]
    assert not (runs / "none" / LAST).exists()


def test_a_run_resumes_in_another_number_of_processes_with_the_same_total_batch(runs, data, tmp_path, train):
    shutil.copytree(runs / "two", tmp_path / "two")
    arguments = train_arguments(data, tmp_path / "two", *RECIPE, "--resume")
    assert train(*arguments, "--batch_size", "2")[0] == 0
    status, _, err = train(*arguments, "--batch_size", "1")
    assert status == 2
    assert "--batch_size: found 1" in err
    assert "expected 2" in err


@pytest.mark.parametrize(("cases", "batch_size", "processes"), [(5, 1, 2), (7, 2, 3), (2, 3, 2)])
def test_processes_share_out_the_batches_of_one_process(cases, batch_size, processes):
    whole = list(EndlessBatches(cases, processes * batch_size, seed=1, start=3, stop=15))
    shares = [list(EndlessBatches(cases, batch_size, 1, 3, 15, rank, processes)) for rank in range(processes)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    assert {len(batch) for share in shares for batch in share} == {batch_size}


def test_random_numbers_differ_between_processes_and_rank_0_matches_a_single_process():
    def draw(*numbers):
        seed_iteration(*numbers)
        return torch.rand(3)

    assert torch.equal(draw(7, 4, 0), draw(7, 4))
    assert not torch.equal(draw(7, 4, 1), draw(7, 4))
    torch.manual_seed(derive_seed(7, 4, 0x5EED))
    assert torch.equal(torch.rand(3), draw(7, 4))


@pytest.mark.parametrize("begun", [None, LAST, PREVIOUS])
def test_slurm_script_starts_or_resumes_training(tmp_path, begun):
    for name, text in {"scontrol": "echo node1; echo node2", "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    if begun:
        (tmp_path / begun).touch()
    job = {"ID": "123456", "NODELIST": "node[1-2]", "NUM_NODES": "2"}
    slurm = {**{f"SLURM_JOB_{name}": value for name, value in job.items()}, "SLURM_CPUS_PER_TASK": "16"}
    result = subprocess.run(
        ["bash", REPOSITORY / "docs" / "slurm_train.sh"],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUTPUT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()
    split = words.index("main_train.py")
    assert words[words.index("--rdzv_endpoint") + 1] == "node1:23456"
    assert main_train.parse_args(words[split + 1 :]).resume == bool(begun)

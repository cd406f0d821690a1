"""The scripts on a GPU: killed and resumed, from a GPU to a CPU and back, one NCCL process under torchrun."""

import os
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, train_arguments, wait_for_iteration
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.gpu

BEST, LAST = "best_metric_model.pth", "last_checkpoint.pth"
TOLERANCE = 1e-2  # of losses: a GPU adds in any order, and a few steps make more of it


def on(gpu, *words):
    """Later flags replace earlier ones, --gpu cpu among them."""
    return [str(word) for word in (*words, "--gpu", gpu)]


def losses(output):
    logs = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in logs.Scalars("train/loss")}


def test_a_run_that_is_killed_goes_on(boxes, tmp_path, train, gpu):
    recipe = ("--max_iter", "12", "--eval_step", "4")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(*on(gpu, *train_arguments(boxes, whole, *recipe)))[0] == 0
    words = on(gpu, *train_arguments(boxes, killed, *recipe))
    process = subprocess.Popen([sys.executable, "main_train.py", *words], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        wait_for_iteration(killed / LAST, 4)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    status, _, err = train(*words, "--resume")
    assert status == 0, err
    expected, found = losses(whole), losses(killed)
    assert list(found) == list(expected) == list(range(1, 13))
    assert np.allclose(list(found.values()), list(expected.values()), rtol=TOLERANCE)


def label_maps(folder):
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*_seg.nii.gz"))}


def test_checkpoints_cross_between_gpu_and_cpu(boxes, tmp_path, train, predict, gpu):
    for trained_on, other in ((gpu, "cpu"), ("cpu", gpu)):
        run = tmp_path / f"trained on {trained_on}, other {other}"
        recipe = ("--max_iter", "30", "--eval_step", "30", "--lr", "0.01", "--amp", "off")
        assert train(*on(trained_on, *train_arguments(boxes, run, *recipe)))[0] == 0
        maps = []
        for place in (trained_on, other):
            output = run / f"predictions {len(maps)}"
            data = ("--root", boxes, "--output", output, "--trained_weights", run / BEST, "--amp", "off")
            status, _, err = predict(*on(place, *data, "--num_workers", "0"))
            assert status == 0, err
            maps.append(label_maps(output))
        assert maps[0].keys() == maps[1].keys()
        for name, theirs in maps[0].items():
            assert (maps[1][name] == theirs).mean() > 0.999, name  # near-ties may fall either way
            assert theirs.any(), name  # there is something to disagree on


def test_one_process_under_torchrun_uses_nccl(boxes, tmp_path, gpu):
    words = on(gpu, *train_arguments(boxes, tmp_path / "run", "--sync_batchnorm"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    result = subprocess.run(
        [*torchrun, "main_train.py", *words],
        cwd=REPOSITORY,
        env={**os.environ, "TORCH_DISTRIBUTED_DEBUG": "OFF", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["iteration"] == 4

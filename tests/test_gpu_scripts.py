"""The scripts on a GPU: kill and resume, checkpoints from GPU to CPU and back, one NCCL process under torchrun."""

import os
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, train_arguments, wait_for_iteration, wait_for_the_next_second
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.gpu

BEST, LAST = "best_metric_model.pth", "last_checkpoint.pth"
TOLERANCE = 1e-2  # of losses: the order of sums on a GPU varies, and training steps amplify the difference


def on(gpu, *words):
    """Append --gpu to a command; later flags override earlier ones, such as --gpu cpu."""
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
    wait_for_the_next_second()
    status, _, err = train(*words, "--resume")
    assert status == 0, err
    expected, found = losses(whole), losses(killed)
    assert list(found) == list(expected) == list(range(1, 13))
    assert np.allclose(list(found.values()), list(expected.values()), rtol=TOLERANCE)


def label_maps(folder):
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*_seg.nii.gz"))}


def test_checkpoints_cross_between_gpu_and_cpu(boxes, tmp_path, train, predict, gpu, full_float32):
    for direction, (trained_on, other) in {"there": (gpu, "cpu"), "back": ("cpu", gpu)}.items():
        run = tmp_path / direction
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
            assert (maps[1][name] == theirs).mean() > 0.999, name  # ties may be decided either way
            assert theirs.any(), name  # a comparison of empty maps would be meaningless


# A training step with an all-reduce of gradients in a process group of one.
COMMUNICATING = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from engine.runtime.distributed import join_processes
from networks import build_network

with join_processes(sys.argv[1]) as device:
    assert dist.get_backend() == ("gloo" if device.type == "cpu" else "nccl")
    total = torch.arange(5.0, device=device)
    dist.all_reduce(total)
    assert total.tolist() == [0, 1, 2, 3, 4]
    network = build_network("REP3D", 1, 2, feat_size=(4, 4, 4, 4), kernel_size=5).to(device)
    parallel = DistributedDataParallel(network)  # kept alive, since its hooks are needed
    parallel(torch.randn(2, 1, 32, 32, 32, device=device)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    print("communicated")
"""


@pytest.fixture
def torchrun():
    """Run a script in one process of torchrun; returns its standard output."""

    def run_it(*words):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
        command += ["--local_addr", "127.0.0.1"]  # a machine without network may not resolve its own name
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *sys.path])
        options = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True, "timeout": 60}
        result = subprocess.run([*command, *map(str, words)], **options)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run_it


def test_one_process_communicates_by_nccl(torchrun, tmp_path, gpu):
    script = tmp_path / "communicating.py"
    script.write_text(COMMUNICATING)
    assert "communicated" in torchrun(script, gpu)


def test_one_process_of_nccl_trains_by_the_script(torchrun, boxes, tmp_path, gpu):
    torchrun("main_train.py", *on(gpu, *train_arguments(boxes, tmp_path / "run", "--sync_batchnorm")))
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["iteration"] == 4

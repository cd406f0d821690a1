"""Random draws that do not depend on where a run was resumed, and loading processes that only their parent stops."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from monai.data import CacheDataset
from monai.transforms import Compose, RandGaussianNoise

from engine.data.loading import EndlessBatches, SeededDataset, derive_seed, seed_iteration


@pytest.mark.parametrize(("cases", "batch_size"), [(5, 1), (5, 2), (3, 4), (1, 3)])
def test_a_later_start_gives_the_same_batches(cases, batch_size):
    whole = list(EndlessBatches(cases, batch_size, seed=1, start=0, stop=12))
    assert len(whole) == 12
    for start in (1, 4, 11):
        later = EndlessBatches(cases, batch_size, seed=1, start=start, stop=12)
        assert list(later) == whole[start:]
        assert len(later) == 12 - start


def test_every_epoch_is_another_permutation_of_all_the_cases():
    draws = [draw for batch in EndlessBatches(7, 2, seed=3, start=0, stop=14) for draw in batch]
    assert [number for number, _ in draws] == list(range(28))
    epochs = [tuple(case for _, case in draws[start : start + 7]) for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_seed_decides_the_order():
    assert list(EndlessBatches(9, 1, 0, 0, 9)) != list(EndlessBatches(9, 1, 1, 0, 9))


def test_random_transforms_depend_on_the_draw_alone():
    transform = Compose([RandGaussianNoise(prob=1.0)])
    dataset = SeededDataset(CacheDataset([torch.zeros(8)] * 2, transform, progress=False), seed=5)
    first = dataset[(0, 0)]
    other = dataset[(1, 0)]
    assert not torch.equal(first, other)
    assert torch.equal(dataset[(0, 0)], first)
    assert torch.equal(dataset[(0, 1)], first)  # equal cases, equal draw


def test_derived_seeds_are_32_bit_and_different():
    seeds = {derive_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert max(seeds) < 2**32


def test_iteration_decides_the_random_numbers_of_a_network():
    def draw(iteration):
        seed_iteration(7, iteration)
        return torch.rand(3)

    assert torch.equal(draw(4), draw(4))
    assert not torch.equal(draw(4), draw(5))
    assert draw(0).isfinite().all()


STOPPED_WHILE_A_LOADER_STARTS = """
import os, signal, sys, time
from engine.runtime.errors import run
from engine.runtime.stop_requests import StopRequests
from engine.data.loading import Loader

def stop_all():
    os.killpg(0, int(sys.argv[1]))
    time.sleep(0.2)

def main(_):
    with StopRequests() as stop:
        for number in Loader(range(1000), num_workers=1):
            time.sleep(0.05)
            if number == 10:
                break
        stop.raise_if_requested()

os.register_at_fork(after_in_child=stop_all)  # before the init function of the loading process
sys.exit(run(main, None))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_group_while_a_loader_starts(number):
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_A_LOADER_STARTS, str(int(number))],
        cwd=REPOSITORY,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 75, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("stopped by ")
    assert "Traceback" not in ended.stderr


STOPPED_WHILE_IT_RECEIVES_A_BATCH = """
import sys, time
from multiprocessing import connection
import torch
from engine.runtime.errors import Stopped, run
from engine.data.loading import Loader

def stop(*_):  # in the middle of the handshake with the thread that hands out the batch
    raise Stopped("SIGTERM")

def main(_):
    batches = iter(Loader(torch.arange(1000.), num_workers=1))
    next(batches)
    connection.answer_challenge = stop
    try:
        next(batches)
    finally:
        time.sleep(0.3)  # the loading process has noticed, and is not at its end yet

sys.exit(run(main, None))
"""


def test_stopping_while_a_batch_is_received_prints_one_line():
    command = [sys.executable, "-c", STOPPED_WHILE_IT_RECEIVES_A_BATCH]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 75, ended.stderr
    assert ended.stderr.startswith("stopped by SIGTERM")
    assert len(ended.stderr.splitlines()) == 1


HOLDS_ITS_LOADER = """
from engine.data.loading import Loader
held = iter(Loader(range(1000), num_workers=1))
next(held)
raise SystemExit(3)
"""


def test_a_script_that_ends_with_an_open_loader_does_not_hang():
    ended = subprocess.run([sys.executable, "-c", HOLDS_ITS_LOADER], cwd=REPOSITORY, timeout=60, env={**os.environ})
    assert ended.returncode == 3

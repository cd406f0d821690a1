"""Timing of work on a device, without the launch overhead of the host."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

GROUPS, GROUP_RUNS = 3, 10  # groups of runs, and runs per group; the median of the groups' means counts
SHORT_S, LONG_S = 0.005, 0.03  # above the first, cached inputs do not matter; above the second, one run is enough
HOST_S = 2e-5  # generous estimate of the host's time to launch a kernel
KERNELS = 40  # kernels per run, at most
CACHE_SHARE = 2.0  # size of all input sets together, relative to the cache
MOST_SETS = 8


def count_sets(set_bytes: int, device: torch.device) -> int:
    """Count the sets of inputs that must take turns so that no run finds its inputs in the GPU's cache."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(MOST_SETS, round(CACHE_SHARE * cache / set_bytes) + 1))


def device_seconds(run: Callable[..., Any], sets: Sequence[Sequence[Tensor]], device: torch.device) -> float:
    """Measure the median seconds of ``run(*set)`` over groups of runs that take turns with the sets.

    On a GPU the device is kept busy while the host launches a group, so that gaps between kernels are not measured.
    """
    for inputs in sets:  # warm-up
        run(*inputs)
        if _timed(run, [inputs], 1, device) > SHORT_S:
            sets = [inputs]
            break
    once = _timed(run, sets, 1, device)
    if once > LONG_S:
        return once
    runs = len(sets) if once > SHORT_S else max(len(sets), GROUP_RUNS)
    return median(_timed(run, sets, runs, device) / runs for _ in range(GROUPS))


def _timed(run: Callable[..., Any], sets: Sequence[Sequence[Tensor]], runs: int, device: torch.device) -> float:
    """Measure the seconds of a group of runs."""
    if device.type != "cuda":
        start = time.perf_counter()
        for index in range(runs):
            run(*sets[index % len(sets)])
        return time.perf_counter() - start
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        _occupy(runs * KERNELS * HOST_S, device)
        begin.record()
        for index in range(runs):
            run(*sets[index % len(sets)])
        end.record()
        torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def _occupy(seconds: float, device: torch.device) -> None:
    """Launch work that takes at least so long: matrix products of 1 ms or more on the fastest GPUs of 2026."""
    matrix = torch.empty(8192, 8192, dtype=torch.bfloat16, device=device).fill_(0.01)
    for _ in range(min(100, int(seconds / 1e-3) + 1)):
        torch.mm(matrix, matrix)

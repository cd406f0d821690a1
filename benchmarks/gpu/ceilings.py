"""Ceilings of a device: bytes per second of a copy, operations per second of a matrix product."""

import torch

from benchmarks.gpu.bench import Bench, read_results
from benchmarks.gpu.timing import device_seconds

# Bytes of a copy and side of a matrix: large enough for the peak rate of a GPU, or small enough for a rehearsal.
SIZES = {"cuda": (2**31, 8192), "cpu": (2**24, 256)}


def copy_rate(device: torch.device) -> float:
    """Measure the bytes per second that a large copy reads and writes."""
    source = torch.randn(SIZES[device.type][0] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / device_seconds(target.copy_, [(source,)], device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure operations per second, two per multiply-add, of a large product of random square matrices."""
    side = SIZES[device.type][1]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / device_seconds(torch.mm, [(a, b)], device)


def find_ceilings(bench: Bench) -> tuple[float, float]:
    """Find bytes per second and bf16 operations per second in the results of the first step, or measure them."""
    found = read_results(bench.output, "machine", bench.device.type)
    if found is not None and "matrix_rate" in found and found["device"] == bench.machine["device"]:
        return found["copy_rate"], found["matrix_rate"]
    return copy_rate(bench.device), matrix_rate(bench.device, torch.bfloat16)

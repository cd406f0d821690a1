"""Step 1: machine, its two ceilings, versions of the packages."""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceilings import copy_rate, matrix_rate

PACKAGES = ("torch", "triton", "monai", "nibabel", "numpy", "scipy", "einops")


def measure(bench: Bench) -> None:
    """Note facts about the machine; there are no rows."""
    bench.note(python=platform.python_version(), cpus=os.cpu_count(), versions=versions(), **describe_gpu(bench.device))
    bench.note(copy_rate=copy_rate(bench.device), matrix_rate=matrix_rate(bench.device, torch.bfloat16))


def versions() -> dict[str, str | None]:
    """Find the versions of installed packages, CUDA and cuDNN."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {**found, "cuda": torch.version.cuda, "cudnn": None if cudnn is None else str(cudnn)}


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Describe memory, cache, multiprocessors and driver of a GPU."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = ""
    return {
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "multiprocessors": properties.multi_processor_count,
        "driver": driver or None,
    }


def lines(results: dict[str, Any]) -> list[str]:
    """Format ceilings and versions."""
    if "matrix_rate" not in results:
        return []
    rates = f"{results['copy_rate'] / 1e12:.2f} TB/s copied, {results['matrix_rate'] / 1e12:.1f} TFLOP/s in bf16"
    names = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    return [f"{rates}; python {results['python']}, {names}"]

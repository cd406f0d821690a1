"""Step 8: full-width REP3D on one CT of 512 x 512 x 200 voxels: seconds of each part, and ``test_seg.py`` itself."""

import time
from pathlib import Path
from typing import Any

import torch

import test_seg
from benchmarks import prediction
from benchmarks.gpu.bench import Bench
from benchmarks.processes import PeakMemory
from benchmarks.synthetic_ct import write_ct
from engine.runtime.errors import run
from networks import build_network

SHAPE, ROI_SIZE, OVERLAP = (512, 512, 200), (96, 96, 96), 0.5
REDUCED_SHAPE, REDUCED_ROI_SIZE = (48, 48, 24), (32, 32, 32)
REDUCED_NETWORK: dict[str, Any] = {"feat_size": (4, 4, 4, 4), "kernel_size": 5}
REDUCED_FLAGS = ["--feat_size", "4", "4", "4", "4", "--kernel_size", "5"]
SCRIPT = "test_seg.py"
LEAST_S = 8  # a row needs so many seconds to be started


def measure(bench: Bench) -> None:
    """Record one row for the parts and one for the script."""
    shape, roi_size = (REDUCED_SHAPE, REDUCED_ROI_SIZE) if bench.reduced else (SHAPE, ROI_SIZE)
    bench.note(shape=shape, roi_size=roi_size, overlap=OVERLAP, network="REP3D")
    for folder in ("lean", "images"):
        (bench.scratch / folder).mkdir()
    write_ct(bench.scratch / "ct.nii.gz", shape, seed=0)
    (bench.scratch / "images" / "ct.nii.gz").symlink_to(bench.scratch / "ct.nii.gz")
    # The parts come first: their process is forked, which must happen before CUDA is initialised.
    bench.attempt({"way": "steps"}, lambda: run_parts(bench, roi_size), LEAST_S)
    bench.attempt({"way": SCRIPT}, lambda: run_script(bench, roi_size), LEAST_S)


def run_parts(bench: Bench, roi_size: tuple[int, ...]) -> dict[str, Any]:
    """Measure loading, network, and inverting and writing, one after the other in a process of its own."""
    size = [str(side) for side in roi_size]
    # The rehearsal uses the stand-in, since that benchmark has no flag for the widths of a network.
    network = [] if bench.reduced else ["--network", "REP3D"]
    args = prediction.parse_args([*network, "--roi_size", *size, "--overlap", str(OVERLAP), "--cases", "1"])
    found = prediction.measure("lean", args, bench.scratch, bench.gpu, start="fork")
    names = {"load": "load_s", "network": "network_s", "rest": "rest_s", "total": "total_s"}
    memory = {"host_peak_bytes": found["peak_bytes"], "gpu_peak_bytes": found.get("gpu_peak_bytes")}
    return {**{name: found[key] for key, name in names.items()}, **memory}


def run_script(bench: Bench, roi_size: tuple[int, ...]) -> dict[str, Any]:
    """Measure the script with random weights, without its imports."""
    weights = save_weights(bench, bench.scratch / "weights.pth")
    size = ["--roi_size", *(str(side) for side in roi_size)]
    network = REDUCED_FLAGS if bench.reduced else []
    files = ["--images", str(bench.scratch / "images"), "--output", str(bench.scratch / "predictions")]
    rest = ["--trained_weights", str(weights), "--dataset", prediction.DATASET, "--gpu", bench.gpu]
    args = test_seg.parse_args([*files, *rest, *size, *network, "--overlap", str(OVERLAP)])
    start = time.perf_counter()
    with PeakMemory() as peak:
        status = run(test_seg.main, args)
    if status:
        return {"reason": f"test_seg.py ended with status {status}"}
    gpu = torch.cuda.max_memory_allocated(bench.device) if bench.device.type == "cuda" else None
    return {"total_s": time.perf_counter() - start, "host_peak_bytes": peak.bytes, "gpu_peak_bytes": gpu}


def save_weights(bench: Bench, path: Path) -> Path:
    """Write a state dict of the network with random weights."""
    torch.manual_seed(0)
    network = build_network("REP3D", 1, prediction.CLASSES, **(REDUCED_NETWORK if bench.reduced else {}))
    torch.save(network.state_dict(), path)
    return path


def script_row(results: dict[str, Any]) -> dict[str, Any]:
    """Return the row of ``test_seg.py``; KeyError if there is none."""
    return {row["way"]: row for row in results["rows"]}[SCRIPT]


def lines(results: dict[str, Any]) -> list[str]:
    """Format one line per row."""
    return [f"{row['way']}: {describe(row)}" for row in results["rows"]]


def describe(row: dict[str, Any]) -> str:
    """Format the measurement of a row, or the reason why it has none."""
    if row["reason"] is not None:
        return row["reason"]
    seconds = ", ".join(f"{key.removesuffix('_s')} {value:.1f} s" for key, value in row.items() if key.endswith("_s"))
    gpu = "" if row["gpu_peak_bytes"] is None else f", GPU {row['gpu_peak_bytes'] / 1e9:.1f} GB"
    return f"{seconds}; peak host {row['host_peak_bytes'] / 1e9:.1f} GB{gpu}"

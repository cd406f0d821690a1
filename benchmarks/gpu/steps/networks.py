"""Step 5: one training step of every network, on two crops of 96^3."""

from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.measure import Step, measure_step
from engine.runtime.devices import choose_precision
from engine.weights.checkpoints import NetworkConfig
from networks import NETWORKS
from networks.base import InputSizes
from tools.summary import available_networks

BATCH, CLASSES = 2, 16
ROI_SIZE, REDUCED_ROI_SIZE = (96, 96, 96), (32, 32, 32)
REDUCED_NETWORKS = ("UNet3D", "MedNeXt_S")  # the smallest
REPEATS, LIMIT_S = 2, 2.0
LEAST_S = 5  # a network needs so many seconds to be started
PER_LINE = 4  # networks per line of the table


def measure(bench: Bench) -> None:
    """Record one row per network."""
    bench.note(batch_size=BATCH, roi_size=REDUCED_ROI_SIZE if bench.reduced else ROI_SIZE)
    installed = available_networks()
    for name in REDUCED_NETWORKS if bench.reduced else NETWORKS:
        if name in installed:
            bench.attempt({"network": name}, lambda name=name: run(bench, name), LEAST_S)  # type: ignore[misc]
        else:
            bench.record(network=name, reason="its optional package is not installed")


def run(bench: Bench, name: str) -> dict[str, Any]:
    """Measure seconds and peak bytes of a step in the device's precision."""
    roi_size = REDUCED_ROI_SIZE if bench.reduced else ROI_SIZE
    config = NetworkConfig(name, 1, CLASSES, roi_size, {})
    precision = choose_precision("auto", bench.device, roi_size, InputSizes(16))
    return measure_step(Step(config, BATCH, bench.device, precision), REPEATS, LIMIT_S)


def lines(results: dict[str, Any]) -> list[str]:
    """Format milliseconds and gigabytes, several networks per line."""
    cells = [f"{row['network']} {cell(row)}" for row in results["rows"]]
    return [", ".join(cells[start : start + PER_LINE]) for start in range(0, len(cells), PER_LINE)]


def cell(row: dict[str, Any]) -> str:
    """Format the measurement of a network, or the reason why it has none."""
    if row["reason"] is not None:
        return row["reason"].partition(":")[0]
    return f"{1e3 * row['step_s']:.0f} ms {row['peak_bytes'] / 1e9:.1f} GB"

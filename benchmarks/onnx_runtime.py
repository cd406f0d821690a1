"""Seconds of a window of REP3D in ONNX Runtime and in PyTorch, on a CPU.

    python -m benchmarks.onnx_runtime

The network is in its deployed form, with random weights, in float32, batch 1. PyTorch runs it as test_seg.py does, with
the spectra of the large kernels kept from window to window. ONNX Runtime runs the files of ``tools.export --format
onnx``: with plain convolutions (the default), and with Fourier transforms where PyTorch has them (--convolution auto).

Each way has a process of its own, which is ended after ``--limit_s``. The first window is a warm-up; it counts if no
other one was finished in that time.
"""

import argparse
import importlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import describe_machine, format_table, name_machine, publish
from engine.runtime.arguments import number, odd
from engine.runtime.devices import to_device
from engine.runtime.errors import OneLineParser, run
from engine.runtime.files import make_output_folder
from engine.runtime.memory import tune_process
from engine.weights.checkpoints import NetworkConfig
from networks.base import SegmentationNetwork
from networks.large_kernel_conv import keep_kernel_spectra
from networks.pretrained import settings_of
from tools.export import Export, check_packages, choose_convolution, open_onnx, quiet, write_onnx

# Ways to run a window, with the --convolution of their ONNX file.
WAYS = {"PyTorch": None, "ONNX Runtime": "direct", "ONNX Runtime with Fourier transforms": "auto"}


def measure(way: str, config: NetworkConfig, repeats: int, limit_s: float) -> dict[str, Any]:
    """Measure the median seconds of a window in a new process, or say why there are none."""
    tune_process()  # sets environment variables that the new process reads when it starts
    with TemporaryDirectory() as folder:
        seconds, reason = collect(spawn_server(way, config, 1 + repeats, Path(folder)), 1 + repeats, limit_s)
    if not seconds:
        return {"way": way, "window_s": None, "runs": 0, "reason": reason}
    return {"way": way, "window_s": median(seconds[1:] or seconds), "runs": max(1, len(seconds) - 1), "reason": None}


def spawn_server(way: str, config: NetworkConfig, runs: int, folder: Path) -> tuple[BaseProcess, Connection]:
    """Start ``serve`` in a new process; returns the process and the end of the pipe from which to receive."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=serve, args=(way, config, runs, folder, sender), daemon=True)
    process.start()
    sender.close()
    return process, receiver


def collect(server: tuple[BaseProcess, Connection], runs: int, limit_s: float) -> tuple[list[float], str]:
    """Receive the seconds of the windows until the limit, and why there are no more."""
    process, receiver = server
    seconds: list[float] = []
    end = time.monotonic() + limit_s
    try:
        while len(seconds) < runs and receiver.poll(max(0.0, end - time.monotonic())):
            seconds.append(receiver.recv())
    except EOFError:
        process.join()
        return seconds, f"failed: exit status {process.exitcode}"
    if len(seconds) < runs:
        process.terminate()
    process.join()
    return seconds, f"more than {limit_s:g} s"


def serve(way: str, config: NetworkConfig, runs: int, folder: Path, sender: Connection) -> None:
    """Run windows in the new process, and send the seconds of each."""
    torch.manual_seed(0)
    network = config.build(deploy=True).eval().requires_grad_(False)
    window = torch.randn(1, config.in_chans, *config.roi_size)
    with keep_kernel_spectra(network), torch.inference_mode():
        predict = prepare(network, window, WAYS[way], folder / "network.onnx")
        for _ in range(runs):
            start = time.perf_counter()
            predict(window)
            sender.send(time.perf_counter() - start)


def prepare(
    network: SegmentationNetwork, window: Tensor, convolution: str | None, path: Path
) -> Callable[[Tensor], Tensor]:
    """Place the network for PyTorch or, with a kind of convolution, export it and open the file."""
    if convolution is None:
        return to_device(network, torch.device("cpu"))
    choose_convolution(network, convolution)
    with quiet():
        write_onnx(Export(network, window, settings_of(network)), path)
        return open_onnx(path)


def format_seconds(row: dict[str, Any]) -> str:
    """Format the seconds of a row, or the reason why it has none."""
    return row["reason"] if row["window_s"] is None else f"{row['window_s']:.3g}"


def report(results: dict[str, Any]) -> str:
    """Format the results as text: the machine, and a table of the ways."""
    rows, (first, *_) = results["rows"], results["rows"]
    table = []
    for row in rows:
        known = row["window_s"] and first["window_s"]
        ratio = f"{row['window_s'] / first['window_s']:.1f}" if known else "-"
        table.append([row["way"], format_seconds(row), str(row["runs"]), ratio])
    sides = " x ".join(map(str, results["roi_size"]))
    head = f"{name_machine(results)}; onnxruntime {results['onnxruntime']}; REP3D, window {sides}"
    return f"{head}\n\n{format_table(['way', 'window, s', 'runs', 'over PyTorch'], table)}"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="benchmarks.onnx_runtime", description=__doc__)
    what = parser.add_argument_group("network and input")
    widths, channels, names = [48, 96, 192, 384], "channels of the four stages", ("C1", "C2", "C3", "C4")
    what.add_argument("--feat_size", nargs=4, type=number(int, 1), default=widths, metavar=names, help=channels)
    what.add_argument("--kernel_size", type=odd, default=21, metavar="SIDE", help="side of the large kernels, voxels")
    sides, size = [96, 96, 96], "size of the window, voxels"
    what.add_argument("--roi_size", nargs=3, type=number(int, 1), default=sides, metavar=("D", "H", "W"), help=size)
    measurement = parser.add_argument_group("measurement")
    measurement.add_argument("--repeats", type=number(int, 1), default=2, metavar="N", help="timed windows per way")
    limit = "end of each way's process, the export included"
    measurement.add_argument("--limit_s", type=number(float, 1), default=1800, metavar="SECONDS", help=limit)
    output, file = Path("benchmarks/results/onnx_runtime_cpu.json"), "JSON file to write"
    measurement.add_argument("--output", type=Path, default=output, metavar="FILE", help=file)
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, write the JSON file, and return its content."""
    check_packages("onnx")
    make_output_folder(args.output.parent)
    overrides = {"feat_size": list(args.feat_size), "kernel_size": args.kernel_size}
    config = NetworkConfig("REP3D", 1, 16, tuple(args.roi_size), overrides)
    with torch.device("meta"):
        config.build(source=config.network)  # wrong flags end here
    rows = []
    for way in WAYS:
        print(f"measuring {way} ...", file=sys.stderr, flush=True)
        rows.append(measure(way, config, args.repeats, args.limit_s))
    results = {
        **describe_machine(torch.device("cpu")),
        "onnxruntime": importlib.import_module("onnxruntime").__version__,
        **overrides,
        "roi_size": list(args.roi_size),
        "limit_s": args.limit_s,
        "rows": rows,
    }
    return publish(results, report(results), args.output)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

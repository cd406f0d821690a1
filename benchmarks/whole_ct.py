"""Seconds that a network takes on a whole CT, by precision and overlap of the sliding windows.

    python -m benchmarks.whole_ct [--network REP3D] [--shape 512 512 200] [--overlaps 0.5 0.25 0]

One process predicts the same preprocessed synthetic CT in float32 and in the precision of --amp auto, if that is
another one: in float32 at the first overlap only, because the seconds of a window do not depend on it. Windows of air,
which are computed once, are counted. The weights are random; loading, inversion and writing are left to
benchmarks.prediction.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.runtime.arguments import number
from engine.runtime.errors import OneLineParser, run
from engine.runtime.files import make_output_folder
from engine.runtime.memory import tune_process
from networks import NETWORKS

DATASET = "amos"


def measure(args: argparse.Namespace, image: Any) -> list[dict[str, Any]]:
    """Predict a preprocessed volume (1, D, H, W) in each way, one after the other."""
    import torch

    from benchmarks.prediction import make_network
    from engine.prediction.ensemble import Member
    from engine.prediction.estimate import measure_window
    from engine.prediction.sliding_window import SlidingWindow, predict_logits
    from engine.runtime.devices import amp_name, choose_precision, make_autocast
    from networks.large_kernel_conv import keep_kernel_spectra

    device = torch.device("cpu")
    network = make_network(args.network, args.roi_size, device)
    computed: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    auto = choose_precision("auto", device, args.roi_size, network.input_sizes, gradients=False)
    ways = [(None, args.overlaps[0]), *((auto, overlap) for overlap in args.overlaps)]
    rows = []
    with keep_kernel_spectra(network):
        for precision, overlap in dict.fromkeys(ways):
            print(f"{amp_name(precision)}, overlap {overlap:g} ...", file=sys.stderr, flush=True)
            window = SlidingWindow(args.roi_size, 1, overlap, device, make_autocast(device, precision))
            measure_window(Member(network, window, amp_name(precision)))  # memory and kernels of a first pass
            computed.clear()
            started, started_cpu = time.perf_counter(), time.process_time()
            predict_logits(network, image, window)
            rows.append(
                {
                    "amp": amp_name(precision),
                    "overlap": overlap,
                    "windows": window.count(image.shape[1:]),
                    "computed": sum(computed),
                    "seconds": time.perf_counter() - started,
                    "cpu_seconds": time.process_time() - started_cpu,
                }
            )
    return rows


def load_ct(args: argparse.Namespace) -> Any:
    """Write a synthetic CT, and preprocess it as test_seg.py does: (1, D, H, W), cropped to the body."""
    from benchmarks.synthetic_ct import write_ct
    from engine.data.cases import make_case
    from engine.data.datasets import DATASETS
    from load_datasets_transforms import test_pipeline

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        write_ct(path, args.shape, args.seed)
        case: Any = make_case("ct", str(path))
        return test_pipeline(DATASETS[DATASET])(case)["image"]


def report(results: dict[str, Any]) -> str:
    """Format the results as text; ratios are those of seconds to the first row."""
    from benchmarks.report import format_table, name_machine

    first = results["rows"][0]["seconds"]
    rows = [
        [
            row["amp"],
            f"{row['overlap']:g}",
            str(row["windows"]),
            str(row["computed"]),
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{first / row['seconds']:.1f}",
        ]
        for row in results["rows"]
    ]
    header = ["--amp", "--overlap", "windows", "computed", "seconds", "CPU seconds", "times faster"]
    grid = " x ".join(map(str, results["grid"]))
    what = f"{results['network']} on a CT of {' x '.join(map(str, results['shape']))}, cropped and resampled to {grid}"
    return f"{name_machine(results)}\n{what}\n\n{format_table(header, rows)}"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="benchmarks.whole_ct", description=__doc__)
    side = number(int, 16)
    shape = "shape of the CT, voxels"
    parser.add_argument("--shape", nargs=3, type=side, default=(512, 512, 200), metavar=("X", "Y", "Z"), help=shape)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the CT")
    parser.add_argument("--network", choices=NETWORKS, default="REP3D", metavar="NAME", help="network")
    size = "size of sliding windows, voxels"
    parser.add_argument("--roi_size", nargs=3, type=side, default=(96, 96, 96), metavar=("D", "H", "W"), help=size)
    share, overlaps = number(float, 0, 1, open_high=True), "overlaps of neighbouring windows"
    parser.add_argument("--overlaps", nargs="+", type=share, default=(0.5, 0.25, 0.0), metavar="SHARE", help=overlaps)
    output = Path("benchmarks/results/whole_ct_cpu.json")
    parser.add_argument("--output", type=Path, default=output, metavar="FILE", help="JSON file to write")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, write the JSON file, and return its content."""
    make_output_folder(args.output.parent)
    tune_process()
    import torch

    from benchmarks.report import describe_machine, publish

    image = load_ct(args)
    results = {
        **describe_machine(torch.device("cpu")),
        **{key: value for key, value in vars(args).items() if key != "output"},
        "grid": list(image.shape[1:]),
        "rows": measure(args, image),
    }
    return publish(results, report(results), args.output)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

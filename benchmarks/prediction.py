"""Cost of a prediction besides its network: the published way, and the way of test_seg.py.

    python -m benchmarks.prediction [--shape 512 512 200] [--network REP3D]

The published way is MONAI's: softmax, Invertd on all classes, AsDiscreted(argmax), SaveImaged. Both ways load and
preprocess the same synthetic CT and run the same network, each in a new process. The last row is the loop of
test_seg.py over several cases, with its loading processes and its writing thread. The network is a stand-in that
classifies by intensity, unless --network names a real network, which gets random weights.

Memory is the peak of the sampled resident memory of a way's process and all of its children, libraries included; pages
that processes share count in each of them.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.processes import SAMPLE_EVERY, resident_bytes
from engine.data.nifti import read_voxels
from engine.runtime.arguments import number
from engine.runtime.errors import OneLineParser, run
from engine.runtime.files import make_output_folder
from engine.runtime.memory import tune_process
from networks import NETWORKS

if TYPE_CHECKING:  # imported in functions: they count in the memory of the processes that need them
    import torch

    from networks.base import SegmentationNetwork

DATASET = "amos"
CLASSES = 16
WAYS = {"published": "published way", "lean": "test_seg.py's steps", "loop": "test_seg.py's loop"}


def make_network(name: str | None, roi_size: Sequence[int], device: "torch.device") -> "SegmentationNetwork":
    """Build the named network with random weights, or the stand-in, whose classes are 16 bands of intensity."""
    import torch

    from engine.runtime.devices import to_device
    from networks import build_network
    from networks.base import InputSizes, SegmentationNetwork

    class Bands(SegmentationNetwork):
        in_chans, out_chans, input_sizes = 1, CLASSES, InputSizes(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * slopes - offsets

    if name is not None:
        torch.manual_seed(0)
        network = build_network(name, in_chans=1, out_chans=CLASSES, roi_size=roi_size, deploy=True)
        return to_device(network.eval(), device)
    # -a (x - middle)^2, without the term a x^2, which is the same for all classes
    middles = torch.linspace(0, 1, CLASSES, device=device)[:, None, None, None]
    slopes, offsets = 2000 * middles, 1000 * middles**2
    return Bands()


def predict(way: str, args: argparse.Namespace, folder: Path, gpu: str, answers: Connection) -> None:
    """Predict in this process, and send the seconds; an empty message is sent before, after the imports."""
    if way != "published":
        tune_process()
    import torch
    from monai.data import Dataset

    from engine.data.cases import make_case
    from engine.data.datasets import DATASETS
    from engine.data.loading import case_loader
    from engine.prediction.predict_cases import overlap_steps
    from engine.prediction.sliding_window import SlidingWindow, predict_logits
    from engine.runtime.devices import choose_device, choose_precision, make_autocast
    from load_datasets_transforms import infer_post_transforms, test_pipeline
    from networks.large_kernel_conv import keep_kernel_spectra

    transforms = test_pipeline(DATASETS[DATASET])
    device = choose_device(gpu)
    network = make_network(args.network, args.roi_size, device)
    # On a CPU the ways are compared in float32.
    precision = None if device.type == "cpu" else choose_precision("auto", device, args.roi_size, network.input_sizes)
    window = SlidingWindow(args.roi_size, 4, args.overlap, device, make_autocast(device, precision))
    output = folder / way
    invert, save = infer_post_transforms(output, transforms)
    source = str(folder / "ct.nii.gz")
    cases = [make_case(f"ct_{index}", source) for index in range(args.cases)]
    seconds = dict.fromkeys(("load", "network", "rest"), 0.0)
    answers.send({})

    def infer(case: dict[str, Any]) -> dict[str, Any]:
        logits = predict_logits(network, case["image"], window)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return {**case, "pred": logits}

    def peak_on_gpu() -> dict[str, int]:
        return {"gpu_peak_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}

    start = time.perf_counter()
    if way == "loop":
        loader = case_loader(Dataset(cases, transforms), args.num_workers)
        with keep_kernel_spectra(network):
            overlap_steps(loader, lambda case: invert(infer(case)), save)
        answers.send({"total": (time.perf_counter() - start) / args.cases, **peak_on_gpu()})
        return
    with timed(seconds, "load"):
        case: Any = transforms(cases[0])
    with timed(seconds, "network"):
        case = infer(case)
    with timed(seconds, "rest"):
        if way == "published":
            make_published_post(transforms, output)(case)
        else:
            save(invert(case))
    answers.send({**seconds, "total": time.perf_counter() - start, **peak_on_gpu()})


def make_published_post(transforms: Any, output: Path) -> Callable[[dict[str, Any]], Any]:
    """Build MONAI's way from logits to a file, as in its tutorials and the published scripts."""
    from monai.data import MetaTensor
    from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd, SaveImaged

    post = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transforms, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=output, output_postfix="seg", resample=False, separate_folder=False),
        ]
    )
    return lambda case: post({**case, "pred": MetaTensor(case["pred"], meta=case["image"].meta)})


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Record the seconds that the block takes."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def measure(
    way: str, args: argparse.Namespace, folder: Path, gpu: str = "cpu", start: Literal["spawn", "fork"] = "spawn"
) -> dict[str, Any]:
    """Predict in a new process on a device; measure seconds and the peak of its memory in bytes.

    Args:
        way: one of ``WAYS``.
        args: arguments of this benchmark.
        folder: folder with ct.nii.gz and a subfolder for the way's label map.
        gpu: device, as in --gpu of the scripts.
        start: start method of the process. A forked process has imported the libraries already, and requires that the
            parent has not initialised CUDA.
    """
    context: Any = multiprocessing.get_context(start)  # its type depends on the name
    answers, end = context.Pipe(duplex=False)
    process = context.Process(target=predict, args=(way, args, folder, gpu, end))
    process.start()
    end.close()
    assert process.pid is not None  # set by start()
    before, peak = 0, 0
    done: dict[str, Any] = {}
    while not done:
        peak = max(peak, resident_bytes(process.pid))
        if answers.poll(SAMPLE_EVERY):
            done = answers.recv()  # EOFError if the process died, after it printed its traceback
            before = before or peak
    process.join()
    return {"way": WAYS[way], **done, "peak_bytes": peak, "libraries_bytes": before}


def compare_label_maps(folder: Path) -> dict[str, float]:
    """Compute the share of voxels where the label maps of the two ways differ, and the share of foreground."""
    paths = folder / "published" / "ct_seg.nii.gz", folder / "lean" / "ct_0_seg.nii.gz"
    published, lean = (read_voxels(str(path)) for path in paths)
    return {"differing": float((published != lean).mean()), "foreground": float((lean > 0).mean())}


def compare_seconds(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Compute the ratios of the published way's seconds to ours: after the network, and with the loading."""
    published, lean = rows["published"], rows["lean"]
    loaded = (published["load"] + published["rest"]) / (lean["load"] + lean["rest"])
    return {"rest_ratio": published["rest"] / lean["rest"], "ratio": loaded}


def report(results: dict[str, Any]) -> str:
    """Format the results as text."""
    from benchmarks.report import format_table, name_machine

    def cell(row: dict[str, Any], name: str) -> str:
        return f"{row[name]:.1f}" if name in row else "-"

    header = ["", "load s", "network s", "rest s", "total s", "peak GB"]
    rows = [
        [
            row["way"],
            *(cell(row, name) for name in ("load", "network", "rest", "total")),
            f"{row['peak_bytes'] / 1e9:.2f}",
        ]
        for row in results["rows"]
    ]
    lines = [
        name_machine(results),
        f"CT of {' x '.join(map(str, results['shape']))}, {CLASSES} classes, network: {results['network']}; "
        f"the loop: seconds per case, {results['cases']} cases, --num_workers {results['num_workers']}\n",
        format_table(header, rows),
    ]
    if "ratio" in results:
        lines += [
            f"\nPublished over ours: {results['rest_ratio']:.1f} for inverting and writing, "
            f"{results['ratio']:.1f} with loading, which is the same in both.",
            f"Voxels that differ: {results['differing']:.2e} of all; share of foreground: {results['foreground']:.2f}.",
        ]
    return "\n".join(lines)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="benchmarks.prediction", description=__doc__)
    what = parser.add_argument_group("CT and network")
    shape = "shape of the CT, voxels"
    what.add_argument(
        "--shape", nargs=3, type=number(int, 16), default=(512, 512, 200), metavar=("X", "Y", "Z"), help=shape
    )
    what.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the CT")
    networks = f"one of {', '.join(NETWORKS)} (default: the stand-in)"
    what.add_argument("--network", choices=NETWORKS, metavar="NAME", help=networks)
    side, size = number(int, 1), "size of sliding windows, voxels"
    what.add_argument("--roi_size", nargs=3, type=side, default=(96, 96, 96), metavar=("D", "H", "W"), help=size)
    share = number(float, 0, 1, open_high=True)
    what.add_argument("--overlap", type=share, default=0.25, metavar="SHARE", help="overlap of neighbouring windows")
    measurement = parser.add_argument_group("measurement")
    measurement.add_argument("--loop_only", action="store_true", help="measure only the loop, for its memory")
    measurement.add_argument("--cases", type=number(int, 1), default=3, metavar="N", help="cases in the loop")
    processes = "data-loading processes of the loop"
    measurement.add_argument("--num_workers", type=number(int, 0), default=1, metavar="N", help=processes)
    output = "JSON file to write (default: benchmarks/results/prediction[_<network>]_cpu.json)"
    measurement.add_argument("--output", type=Path, metavar="FILE", help=output)
    args = parser.parse_args(arguments)
    name = f"prediction_{args.network}_cpu.json" if args.network else "prediction_cpu.json"
    args.output = args.output or Path("benchmarks/results") / name
    return args


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, write the JSON file, and return its content."""
    from benchmarks.synthetic_ct import write_ct

    make_output_folder(args.output.parent)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in WAYS:
            (folder / way).mkdir()
        write_ct(folder / "ct.nii.gz", args.shape, args.seed)
        rows = {}
        for way in ["loop"] if args.loop_only else WAYS:
            print(f"measuring {WAYS[way]} ...", file=sys.stderr, flush=True)
            rows[way] = measure(way, args, folder)
        compared = {} if args.loop_only else {**compare_label_maps(folder), **compare_seconds(rows)}
    import torch

    from benchmarks.report import describe_machine, publish

    results = {
        **describe_machine(torch.device("cpu")),
        **{key: value for key, value in vars(args).items() if key != "output"},
        "network": args.network or "stand-in",
        "rows": list(rows.values()),
        **compared,
    }
    return publish(results, report(results), args.output)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

"""What a prediction costs besides its network: the published way, and the way of test_seg.py.

    python -m benchmarks.prediction [--shape 512 512 200] [--network REP3D]

The published way is MONAI's: softmax, Invertd on all the classes, AsDiscreted(argmax), SaveImaged. Both ways load and
preprocess the same synthetic CT and run the same network, each in a new process; the last row is test_seg.py's loop
with its loading processes and its thread, over several cases. The network is a stand-in that tells classes by
intensity, unless --network names a real one, which gets random weights.

Memory is the largest sum of the resident memory of a way's process and all of its children, libraries included, seen
by a sampler; pages that processes share count in each of them.
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

import numpy as np

from benchmarks.processes import SAMPLE_EVERY, resident_bytes
from engine.data.nifti import read_voxels
from engine.runtime.arguments import number
from engine.runtime.errors import OneLineParser, run
from engine.runtime.files import make_output_folder
from engine.runtime.memory import tune_process
from networks import NETWORKS

if TYPE_CHECKING:  # the processes import them: their memory counts there
    import torch

    from networks.base import SegmentationNetwork

DATASET = "amos"
CLASSES = 16
SPACING = (0.8, 0.8, 2.5)  # mm, of the synthetic CT
WAYS = {"published": "published way", "lean": "test_seg.py's steps", "loop": "test_seg.py's loop"}


def make_ct(path: Path, shape: Sequence[int], seed: int) -> None:
    """Write a synthetic CT: smooth soft tissue with some noise in an elliptic body, air around it, int16."""
    import nibabel as nib
    from scipy.ndimage import zoom

    rng = np.random.default_rng(seed)
    coarse = rng.normal(scale=120, size=[max(2, side // 32) for side in shape]).astype(np.float32)
    voxels = zoom(coarse, [side / small for side, small in zip(shape, coarse.shape, strict=True)], order=1)
    voxels += rng.normal(50, 5, voxels.shape).astype(np.float32)
    across, along = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape[:2])
    voxels[(across[:, None] / 0.9) ** 2 + (along / 0.75) ** 2 > 1] = -1000
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])  # as scanners write them: left, posterior, superior
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), path)


def make_network(name: str | None, roi_size: Sequence[int], device: "torch.device") -> "SegmentationNetwork":
    """The named network with random weights, or the stand-in: a class for each of 16 bands of intensity."""
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
    # -a (x - middle)^2, without the a x^2 that all the classes share
    middles = torch.linspace(0, 1, CLASSES, device=device)[:, None, None, None]
    slopes, offsets = 2000 * middles, 1000 * middles**2
    return Bands()


def predict(way: str, args: argparse.Namespace, folder: Path, gpu: str, answers: Connection) -> None:
    """Predict in this process, and answer with seconds: first an empty answer, when the libraries are imported."""
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

    transforms = test_pipeline(DATASETS[DATASET])
    device = choose_device(gpu)
    network = make_network(args.network, args.roi_size, device)
    # A CPU's ratios are float32's.
    precision = None if device.type == "cpu" else choose_precision("auto", device, args.roi_size, network.input_sizes)
    window = SlidingWindow(args.roi_size, 4, args.overlap, device, make_autocast(device, precision))
    output = folder / way
    invert, save = infer_post_transforms(transforms, output)
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
    """MONAI's way from logits to a file, as its tutorials and the published scripts have it."""
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
    """Enter the seconds that the block takes."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def measure(
    way: str, args: argparse.Namespace, folder: Path, gpu: str = "cpu", start: Literal["spawn", "fork"] = "spawn"
) -> dict[str, Any]:
    """Predict in a new process on a device: seconds and the peak of its memory, bytes.

    Args:
        way: one of ``WAYS``.
        args: of this benchmark.
        folder: with ct.nii.gz and a folder for the way's label map.
        gpu: as the scripts' --gpu.
        start: of the process; a forked one has the libraries already, and is for parents that have not touched CUDA.
    """
    context: Any = multiprocessing.get_context(start)  # typed by its name alone
    answers, end = context.Pipe(duplex=False)
    process = context.Process(target=predict, args=(way, args, folder, gpu, end))
    process.start()
    end.close()
    assert process.pid is not None  # it was started
    before, peak = 0, 0
    done: dict[str, Any] = {}
    while not done:
        peak = max(peak, resident_bytes(process.pid))
        if answers.poll(SAMPLE_EVERY):
            done = answers.recv()  # an EOFError where the process died: its traceback stands above
            before = before or peak
    process.join()
    return {"way": WAYS[way], **done, "peak_bytes": peak, "libraries_bytes": before}


def compare_label_maps(folder: Path) -> dict[str, float]:
    """Share of the voxels where the two ways' label maps differ, and of those that are foreground."""
    paths = folder / "published" / "ct_seg.nii.gz", folder / "lean" / "ct_0_seg.nii.gz"
    published, lean = (read_voxels(str(path)) for path in paths)
    return {"differing": float((published != lean).mean()), "foreground": float((lean > 0).mean())}


def compare_seconds(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The published way's seconds over ours: after the network, and with the loading before it."""
    published, lean = rows["published"], rows["lean"]
    loaded = (published["load"] + published["rest"]) / (lean["load"] + lean["rest"])
    return {"rest_ratio": published["rest"] / lean["rest"], "ratio": loaded}


def report(results: dict[str, Any]) -> str:
    """The results as text."""
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
        f"the loop: seconds a case, {results['cases']} cases, --num_workers {results['num_workers']}\n",
        format_table(header, rows),
    ]
    if "ratio" in results:
        lines += [
            f"\nPublished over ours: {results['rest_ratio']:.1f} in inverting and writing, "
            f"{results['ratio']:.1f} with the loading, which is the same.",
            f"Voxels that differ: {results['differing']:.2e} of all ({results['foreground']:.2f} of them foreground).",
        ]
    return "\n".join(lines)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="benchmarks.prediction", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--shape",
        nargs=3,
        type=number(int, 16),
        default=(512, 512, 200),
        help="of the CT, voxels (default: %(default)s)",
    )
    what.add_argument("--network", choices=NETWORKS, help="a real network (default: the stand-in)")
    what.add_argument("--loop_only", action="store_true", help="measure the loop alone, for its memory")
    what.add_argument(
        "--roi_size", nargs=3, type=number(int, 1), default=(96, 96, 96), help="window (default: 96 96 96)"
    )
    what.add_argument(
        "--overlap",
        type=number(float, 0, 1, open_high=True),
        default=0.25,
        help="of two windows (default: %(default)s)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--cases", type=number(int, 1), default=3, help="in test_seg.py's loop (default: %(default)s)")
    how.add_argument("--num_workers", type=number(int, 0), default=1, help="that load for it (default: %(default)s)")
    how.add_argument("--seed", type=int, default=0, help="of the CT (default: %(default)s)")
    how.add_argument(
        "--output",
        type=Path,
        help="JSON file to write (default: benchmarks/results/prediction[_<network>]_cpu.json)",
    )
    args = parser.parse_args(arguments)
    name = f"prediction_{args.network}_cpu.json" if args.network else "prediction_cpu.json"
    args.output = args.output or Path("benchmarks/results") / name
    return args


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, write the JSON, and return what was written."""
    make_output_folder(args.output.parent)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in WAYS:
            (folder / way).mkdir()
        make_ct(folder / "ct.nii.gz", args.shape, args.seed)
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

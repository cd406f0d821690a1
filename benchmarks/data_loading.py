"""Training crops per second from large CTs: the published pipeline, ours with --cache_dir, ours with --cache_rate.

    python -m benchmarks.data_loading [--cases 10] [--num_workers 2] [--folder /fast/disk]

First, synthetic CTs of 512 x 512 x 120 voxels, 0.8 x 0.8 x 2.5 mm, are written as int16 in .nii.gz. The published
pipeline is MONAI's CacheDataset with cache_rate 0.1 over load, spacing, orientation, window, foreground crop, two
random crops, intensity shift and affine; ours are those of main_train.py. Each is timed after its set-up, over all
cases: one epoch if most cases are preprocessed again, ``--epochs`` epochs from the disk cache, and one epoch from the
disk cache after its files were dropped from the page cache ("cold"). Nothing consumes the crops, so that only loading
is timed.

The time that a training step waits for data is calculated: workers load ahead, so a step of t_step seconds waits
max(0, t_data - t_step), where t_data is the time to load a batch of two crops.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import CacheDataset, list_data_collate
from monai.transforms import (
    Compose,
    CropForegroundd,
    LoadImaged,
    Orientationd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandShiftIntensityd,
    ScaleIntensityRanged,
    Spacingd,
    ToTensord,
)
from torch.utils.data import DataLoader

from benchmarks.report import describe_machine, format_table, name_machine, publish
from benchmarks.synthetic_ct import write_ct
from engine.data.cache import open_cache
from engine.data.cases import Case, pair_cases
from engine.data.datasets import DATASETS, SOFT_TISSUE
from engine.data.loading import training_loader
from engine.runtime.arguments import number
from engine.runtime.errors import OneLineParser, run
from engine.runtime.files import make_output_folder
from load_datasets_transforms import training_pipelines

CROPS_PER_CASE = 2
CACHE_RATE = 0.1
WAIT_SHARE = 0.05  # largest share of a training step that may be spent waiting for data


def published_transforms(roi_size: Sequence[int]) -> Compose:
    """Build the training transforms of the authors' script, in its order."""
    keys, modes = ["image", "label"], ("bilinear", "nearest")
    low, high = SOFT_TISSUE
    return Compose(
        [
            LoadImaged(keys, ensure_channel_first=True),
            Spacingd(keys, pixdim=DATASETS["amos"].spacing, mode=modes),
            Orientationd(keys, axcodes="RAS", labels=None),
            ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd(keys, source_key="image", allow_smaller=True),
            RandCropByPosNegLabeld(
                keys, "label", roi_size, pos=1, neg=1, num_samples=CROPS_PER_CASE, image_key="image", image_threshold=0
            ),
            RandShiftIntensityd("image", offsets=0.10, prob=0.5),
            RandAffined(
                keys,
                mode=modes,
                prob=1.0,
                spatial_size=roi_size,
                rotate_range=(0, 0, np.pi / 30),
                scale_range=(0.1, 0.1, 0.1),
            ),
            ToTensord(keys),
        ]
    )


def measure_rate(loader: DataLoader) -> float:
    """Measure crops per second, from the request for the first batch to the arrival of the last."""
    start = time.perf_counter()
    crops = sum(len(batch["image"]) for batch in loader)
    return crops / (time.perf_counter() - start)


def our_loader(dataset: monai.data.Dataset, epochs: int, args: argparse.Namespace) -> DataLoader:
    """Build the loader of main_train.py with batch size 1."""
    return training_loader(dataset, 1, args.seed, 0, epochs * len(dataset), args.num_workers)


def drop_from_page_cache(folder: Path) -> None:
    """Drop the arrays in a folder from the kernel's page cache (Linux)."""
    for path in folder.rglob("*.npy"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(cases: list[Case], cache: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure crops per second of each way of loading, seconds to fill the cache, and its bytes."""
    training, _ = training_pipelines(DATASETS["amos"], args.roi_size, CROPS_PER_CASE)
    workers = max(1, args.num_workers)
    rates = {}

    show_progress("published pipeline")
    memory = {"cache_rate": CACHE_RATE, "num_workers": workers, "progress": False}
    published = CacheDataset(cases, published_transforms(args.roi_size), **memory)
    loader = DataLoader(published, shuffle=True, num_workers=args.num_workers, collate_fn=list_data_collate)
    rates["published"] = measure_rate(loader)

    show_progress("ours with --cache_rate")
    ours = CacheDataset(cases, training, **memory)
    rates["cache_rate"] = measure_rate(our_loader(ours, 1, args))

    show_progress("ours with --cache_dir")
    start = time.perf_counter()
    cached = open_cache(cases, training, cache, args.num_workers)
    fill_s = time.perf_counter() - start
    rates["cache_dir"] = measure_rate(our_loader(cached, args.epochs, args))
    drop_from_page_cache(cache)
    rates["cache_dir_cold"] = measure_rate(our_loader(cached, 1, args))

    size = sum(path.stat().st_size for path in cache.rglob("*.npy"))
    seconds = CROPS_PER_CASE / rates["cache_dir"]
    return {
        "crops_per_s": rates,
        "cache_dir_over_published": rates["cache_dir"] / rates["published"],
        "fill_s": fill_s,
        "cache_bytes_per_case": size / len(cases),
        "data_s_per_two_crops": seconds,
        "least_step_s_for_wait_share": seconds / (1 + WAIT_SHARE),
    }


def show_progress(name: str) -> None:
    """Print what is being measured."""
    print(f"measuring {name} ...", file=sys.stderr, flush=True)


def report(results: dict[str, Any]) -> str:
    """Format the results as text: the machine, a table of rates, the waiting time of a training step."""
    names = {
        "published": f"published, cache_rate {CACHE_RATE}",
        "cache_rate": f"ours, --cache_rate {CACHE_RATE}",
        "cache_dir": "ours, --cache_dir",
        "cache_dir_cold": "ours, --cache_dir, cold",
    }
    rates = results["crops_per_s"]
    rows = [[text, f"{rates[name]:.2f}", f"{rates[name] / rates['published']:.1f}"] for name, text in names.items()]
    shape = " x ".join(map(str, results["shape"]))
    return "\n".join(
        [
            f"{name_machine(results)}, monai {results['monai']}, load average "
            f"before {results['load_average_before']:.1f}",
            f"{results['cases']} CTs of {shape}, {results['num_workers']} workers, crops of {results['roi_size']}\n",
            format_table(["way", "crops/s", "over published"], rows),
            f"\nFilling the cache: {results['fill_s']:.1f} s, {results['cache_bytes_per_case'] / 1e6:.1f} MB per case.",
            f"Two crops take {1e3 * results['data_s_per_two_crops']:.1f} ms: a training step on them that takes at "
            f"least {1e3 * results['least_step_s_for_wait_share']:.1f} ms waits for less than {WAIT_SHARE:.0%} of it.",
        ]
    )


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="benchmarks.data_loading", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--cases", type=number(int, 1), default=10, metavar="N", help="number of CTs")
    shape = "shape of a CT, voxels"
    data.add_argument(
        "--shape", type=number(int, 2), nargs=3, default=[512, 512, 120], metavar=("X", "Y", "Z"), help=shape
    )
    side, size = number(int, 1), "size of a crop, voxels"
    data.add_argument("--roi_size", type=side, nargs=3, default=[96, 96, 96], metavar=("D", "H", "W"), help=size)
    data.add_argument("--seed", type=number(int, 0), default=0, metavar="N", help="random seed of CTs and crops")
    data.add_argument("--folder", type=Path, metavar="DIR", help="parent of a temporary folder (default: the system's)")
    measurement = parser.add_argument_group("measurement")
    measurement.add_argument("--num_workers", type=number(int, 0), default=2, metavar="N", help="loading processes")
    measurement.add_argument("--epochs", type=number(int, 1), default=20, metavar="N", help="epochs from disk cache")
    output = Path("benchmarks/results/data_loading_cpu.json")
    measurement.add_argument("--output", type=Path, default=output, metavar="FILE", help="JSON file to write")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Write the CTs, measure, print the table, write the JSON file, and return its content."""
    make_output_folder(args.output.parent)
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        print(f"writing {args.cases} CTs to {folder} ...", file=sys.stderr, flush=True)
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir()

        def write_case(case: int) -> None:
            image, label = (folder / name / f"ct_{case:03d}.nii.gz" for name in ("imagesTr", "labelsTr"))
            write_ct(image, args.shape, (args.seed, case), label)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write_case, range(args.cases)))
        measured = measure(pair_cases(folder / "imagesTr", folder / "labelsTr"), folder / "cache", args)
    results = {
        **describe_machine(torch.device("cpu")),
        "monai": monai.__version__,
        "load_average_before": load_average,
        **{name: getattr(args, name) for name in ("cases", "shape", "roi_size", "num_workers", "epochs", "seed")},
        **measured,
    }
    return publish(results, report(results), args.output)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

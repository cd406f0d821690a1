"""Training crops a second from large CTs: the published pipeline, ours with --cache_dir, ours with --cache_rate.

    python -m benchmarks.data_loading [--cases 10] [--num_workers 2] [--folder /fast/disk]

Synthetic CTs of 512 x 512 x 120 voxels, 0.8 x 0.8 x 2.5 mm, int16 in .nii.gz, are made first. The published pipeline is
MONAI's CacheDataset with cache_rate 0.1 in front of load, spacing, orientation, window, foreground crop, two random
crops, shift and affine. Ours are those of main_train.py. Each is timed after its set-up, over all the cases: one epoch
where most cases are preprocessed anew, ``--epochs`` of them from the disk cache, and one from it after the kernel was
told to forget its files ("cold"). Nothing consumes the crops, so that only the loading counts.

What a training step waits is calculated: workers load ahead, so a step of t_step seconds waits max(0, t_data - t_step),
t_data being a batch of two crops over the rate.
"""

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
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
from engine.data.cache import open_cache
from engine.data.cases import Case, pair_cases
from engine.data.datasets import CT_SPACING, DATASETS, SOFT_TISSUE
from engine.data.loading import training_loader
from engine.runtime.arguments import number
from engine.runtime.errors import OneLineParser, run
from engine.runtime.files import make_output_folder
from load_datasets_transforms import training_pipelines

VOXEL_MM = (0.8, 0.8, 2.5)
CROPS_A_CASE = 2
CACHE_RATE = 0.1
ORGANS = 8
WAIT_SHARE = 0.05  # of a step, that data may keep it waiting


def make_ct(folder: Path, case: int, shape: Sequence[int], seed: int) -> None:
    """Write imagesTr/ct_<case>.nii.gz and its label: a noisy body with ellipsoids for organs, labelled from 1."""
    rng = np.random.default_rng((seed, case))
    coarse = torch.from_numpy(rng.normal(0, 60, [math.ceil(side / 16) for side in shape]).astype(np.float32))
    texture = torch.nn.functional.interpolate(coarse[None, None], tuple(shape), mode="trilinear")[0, 0].numpy()
    labels = np.zeros(shape, np.uint8)
    for organ in range(1, ORGANS + 1):
        labels[ellipsoid(shape, rng.uniform(-0.4, 0.4, 3), rng.uniform(0.08, 0.25, 3))] = organ
    voxels = np.where(ellipsoid(shape, (0, 0, 0), (0.85, 0.65, 3)), texture + 10 * labels, -1000)
    voxels = (voxels + rng.integers(-15, 16, shape, dtype=np.int16)).astype(np.int16)
    affine = np.diag([-VOXEL_MM[0], -VOXEL_MM[1], VOXEL_MM[2], 1])  # x and y as scanners count them
    for kind, volume in {"imagesTr": voxels, "labelsTr": labels}.items():
        (folder / kind).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(volume, affine), folder / kind / f"ct_{case:03d}.nii.gz")


def ellipsoid(shape: Sequence[int], centre: Iterable[float], radii: Iterable[float]) -> np.ndarray:
    """The mask (X, Y, Z) of an ellipsoid, in a volume that reaches from -1 to 1 along each axis."""
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, side)) for side in shape)]
    terms = [((axis - c) / r).astype(np.float32) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)]
    return terms[0] + terms[1] + terms[2] < 1


def published_transforms(roi_size: Sequence[int]) -> Compose:
    """The training transforms of the authors' script, in its order."""
    keys, modes = ["image", "label"], ("bilinear", "nearest")
    low, high = SOFT_TISSUE
    return Compose(
        [
            LoadImaged(keys, ensure_channel_first=True),
            Spacingd(keys, pixdim=CT_SPACING, mode=modes),
            Orientationd(keys, axcodes="RAS", labels=None),
            ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd(keys, source_key="image", allow_smaller=True),
            RandCropByPosNegLabeld(
                keys, "label", roi_size, pos=1, neg=1, num_samples=CROPS_A_CASE, image_key="image", image_threshold=0
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


def crops_a_second(loader: DataLoader) -> float:
    """Crops over seconds, from asking for the first batch to having the last."""
    start = time.perf_counter()
    crops = sum(len(batch["image"]) for batch in loader)
    return crops / (time.perf_counter() - start)


def our_loader(dataset: monai.data.Dataset, epochs: int, args: argparse.Namespace) -> DataLoader:
    """The loader of main_train.py, batch size 1."""
    return training_loader(dataset, 1, args.seed, 0, epochs * len(dataset), args.num_workers)


def forget(folder: Path) -> None:
    """Have the kernel drop what it keeps of the folder's files in memory (Linux)."""
    for path in folder.rglob("*.npy"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(cases: list[Case], cache: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Crops a second of each way of loading, seconds to fill the cache, and its bytes."""
    training, _ = training_pipelines(DATASETS["amos"], args.roi_size, CROPS_A_CASE)
    workers = max(1, args.num_workers)
    rates = {}

    tell("published pipeline")
    memory = {"cache_rate": CACHE_RATE, "num_workers": workers, "progress": False}
    published = CacheDataset(cases, published_transforms(args.roi_size), **memory)
    loader = DataLoader(published, shuffle=True, num_workers=args.num_workers, collate_fn=list_data_collate)
    rates["published"] = crops_a_second(loader)

    tell("ours with --cache_rate")
    ours = CacheDataset(cases, training, **memory)
    rates["cache_rate"] = crops_a_second(our_loader(ours, 1, args))

    tell("ours with --cache_dir")
    start = time.perf_counter()
    cached = open_cache(cases, training, cache, args.num_workers)
    fill_s = time.perf_counter() - start
    rates["cache_dir"] = crops_a_second(our_loader(cached, args.epochs, args))
    forget(cache)
    rates["cache_dir_cold"] = crops_a_second(our_loader(cached, 1, args))

    size = sum(path.stat().st_size for path in cache.rglob("*.npy"))
    seconds = CROPS_A_CASE / rates["cache_dir"]
    return {
        "crops_per_s": rates,
        "cache_dir_over_published": rates["cache_dir"] / rates["published"],
        "fill_s": fill_s,
        "cache_bytes_per_case": size / len(cases),
        "data_s_per_two_crops": seconds,
        "least_step_s_for_wait_share": seconds / (1 + WAIT_SHARE),
    }


def tell(what: str) -> None:
    print(f"measuring {what} ...", file=sys.stderr, flush=True)


def report(results: dict[str, Any]) -> str:
    """The results as text: the machine, a table of rates, what a step waits."""
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
            f"\nFilling the cache: {results['fill_s']:.1f} s, {results['cache_bytes_per_case'] / 1e6:.1f} MB a case.",
            f"Two crops take {1e3 * results['data_s_per_two_crops']:.1f} ms: a training step on them waits less than "
            f"{WAIT_SHARE:.0%} of itself from {1e3 * results['least_step_s_for_wait_share']:.1f} ms on.",
        ]
    )


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="benchmarks.data_loading", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--cases", type=number(int, 1), default=10, help="CTs (default: %(default)s)")
    what.add_argument("--shape", type=number(int, 2), nargs=3, default=[512, 512, 120], help="of a CT, voxels")
    what.add_argument("--roi_size", type=number(int, 1), nargs=3, default=[96, 96, 96], help="of a crop, voxels")
    how = parser.add_argument_group("how")
    how.add_argument("--num_workers", type=number(int, 0), default=2, help="processes that load (default: %(default)s)")
    how.add_argument("--epochs", type=number(int, 1), default=20, help="from the disk cache (default: %(default)s)")
    how.add_argument("--seed", type=number(int, 0), default=0, help="of the CTs and the crops (default: %(default)s)")
    how.add_argument("--folder", type=Path, help="where a temporary folder is made (default: the system's)")
    how.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/data_loading_cpu.json"), help="(default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Make the CTs, measure, print the table, write the JSON, and return what was written."""
    make_output_folder(args.output.parent)
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        print(f"making {args.cases} CTs in {folder} ...", file=sys.stderr, flush=True)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda case: make_ct(folder, case, args.shape, args.seed), range(args.cases)))
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

"""Check a dataset folder for problems, and report what training on it involves.

    python -m tools.check_data --root /data/amos --dataset amos
    python -m tools.check_data --root /data/amos --dataset amos --headers_only --json > amos.json

Reads every volume of imagesTr, imagesVal and, if present, imagesTs, with their labels, or those of a --split file.
Checks the pairing by id, headers, agreement of shape and affine, truncated files, NaN, label values, and cases that are
in two splits. Prints one row per case, statistics before and after resampling, the axes that are padded to --roi_size,
voxels per class, the share of voxels that the intensity window saturates, and the size of main_train.py's --cache_dir.
All problems are reported on stderr, one line each, with exit status 2.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from engine.data.cache import largest_bytes
from engine.data.case_checks import CaseReport
from engine.data.cases import find_splits
from engine.data.dataset_checks import DatasetReport, Splits, examine_cases
from engine.data.datasets import DATASETS, DatasetDescription, find_description
from engine.data.header_checks import format_size
from engine.data.split_file import find_split
from engine.runtime.arguments import add_fix_affine_argument, add_split_arguments, number
from engine.runtime.errors import OneLineParser, raise_problems, run
from engine.runtime.warning_lines import merge_warnings, print_warnings
from load_datasets_transforms import training_pipelines

AXES = ("R-L", "A-P", "I-S")
QUANTITIES = {
    "spacing": "spacing, mm",
    "shape": "shape",
    "resampled_shape": "shape, resampled",
    "cropped_shape": "shape, cropped",
}
LEGEND = (
    "Axes: right-left, anterior-posterior, inferior-superior. cropped: estimated shape after the foreground crop, "
    "accurate to one voxel of the file at each end.\npad: axes shorter than --roi_size. low, high: share of the voxels "
    "in the foreground's bounding box at or beyond the window's ends. !: a case with problems."
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("check_data", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", metavar="DIR", required=True, help="dataset folder with imagesTr, labelsTr, imagesVal, labelsVal"
    )
    parser.add_argument("--dataset", required=True, help=f"{', '.join(DATASETS)}, or the path of a JSON description")
    add_split_arguments(parser)
    add_fix_affine_argument(parser)
    side, size = number(int, 1), "size of training crops, voxels"
    parser.add_argument("--roi_size", nargs=3, type=side, default=[96, 96, 96], metavar=("D", "H", "W"), help=size)
    parser.add_argument("--num_workers", type=number(int, 0), default=2, metavar="N", help="cases read in parallel")
    parser.add_argument("--headers_only", action="store_true", help="skip the voxels: seconds instead of minutes")
    parser.add_argument("--json", action="store_true", help="print a JSON document instead of the tables")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Check the dataset, print tables or JSON, and raise all problems together."""
    description = find_description(args.dataset, args.fix_affine)
    split = find_split(args.split, args.fold)
    found = find_splits(Path(args.root), description, test=True, split=split)
    splits = {name: part.cases for name, part in found.items()}
    report = examine_cases(splits, description, args.num_workers, sample=0 if args.headers_only else None)
    problems = [problem for part in found.values() for problem in part.problems] + report.problems
    warnings = merge_warnings([*(part.warnings for part in found.values()), report.warnings])
    results = {
        "root": args.root,
        "split": split and split.to_plain(),
        "voxels_read": not args.headers_only,
        "problems": problems,
        "notes": description.notes,
        "warnings": [line for lines in warnings.values() for line in lines],
        **summarise(report, splits, description, args.roi_size),
    }
    if args.json:
        print(json.dumps(results, indent=2, allow_nan=False))
    else:
        for line in [*description.notes, *([f"split: {split}"] if split else [])]:
            print(line)
        if report.cases:
            print(as_text(results), end="\n\n" if warnings else "\n")
        print_warnings(warnings)
    raise_problems(problems)


def summarise(
    report: DatasetReport, splits: Splits, description: DatasetDescription, roi_size: Sequence[int]
) -> dict[str, Any]:
    """Describe each case and the whole dataset in JSON values.

    Args:
        report: findings about the cases.
        splits: the same cases, by split.
        description: description of the dataset.
        roi_size: size of training crops, voxels.
    """
    padded = [axes_to_pad(case, roi_size) for case in report.cases]
    counts = [case.voxels_by_class for case in report.cases if case.voxels_by_class]
    known = {name: [value for case in report.cases if (value := getattr(case, name))] for name in QUANTITIES}
    return {
        "dataset": description.to_json(),
        "roi_size": list(roi_size),
        "cases": [asdict(case) | {"pad": axes} for case, axes in zip(report.cases, padded, strict=True)],
        "statistics": {name: by_axis(values) for name, values in known.items() if values},
        "padded_cases": sum(map(bool, padded)),
        "padded_cases_by_axis": {axis: sum(axis in axes for axes in padded) for axis in AXES},
        "voxels_by_class": {name: sum(count[name] for count in counts) for name in description.classes},
        "cases_by_class": {name: sum(count[name] > 0 for count in counts) for name in description.classes},
        "cache_bytes": cache_bytes(report, splits, description, roi_size),
    }


def axes_to_pad(case: CaseReport, roi_size: Sequence[int]) -> list[str]:
    """List the axes along which a case is shorter than the crop, as far as its shape is known."""
    return [axis for axis, side, least in zip(AXES, case.final_shape or (), roi_size, strict=False) if side < least]


def by_axis(values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Compute minimum, median and maximum along each axis."""
    quantiles = np.quantile(values, (0, 0.5, 1), axis=0).tolist()
    return dict(zip(("minimum", "median", "maximum"), quantiles, strict=True))


def cache_bytes(report: DatasetReport, splits: Splits, description: DatasetDescription, roi_size: Sequence[int]) -> int:
    """Compute the largest size of --cache_dir for the training and validation cases without problems."""
    pipelines = dict(zip(("training", "validation"), training_pipelines(description, roi_size, 1), strict=True))
    cases = [case for split in splits.values() for case in split]
    return sum(
        largest_bytes(case, pipelines[found.split])
        for case, found in zip(cases, report.cases, strict=True)
        if found.split in pipelines and not found.problems
    )


def as_text(results: dict[str, Any]) -> str:
    """Format the results as tables."""
    cases = results["cases"]
    parts = ", ".join(f"{count} {split}" for split, count in Counter(case["split"] for case in cases).items())
    header = ["", "split", "case", "shape", "spacing, mm", "resampled", "cropped", "pad", "labelled", "low", "high"]
    statistics = [statistics_row(name, values) for name, values in results["statistics"].items()]
    padded = ", ".join(f"{count} along {axis}" for axis, count in results["padded_cases_by_axis"].items())
    text = [
        f"{results['dataset']['name']}: {parts} cases in {results['root']}",
        table([header, *map(case_row, cases)]),
        LEGEND,
        table([["minimum / median / maximum", *AXES], *statistics]),
        f"{results['padded_cases']} of {len(cases)} cases are padded to {format_size(results['roi_size'])}: {padded}",
    ]
    if results["voxels_read"]:
        voxels, cases_with = results["voxels_by_class"], results["cases_by_class"]
        rows = [[name, str(voxels[name]), str(cases_with[name])] for name in voxels]
        text.append(table([["class", "voxels", "cases"], *rows]))
    text.append(f"--cache_dir needs at most {results['cache_bytes'] / 1e9:.3g} GB")
    return "\n\n".join(text)


def case_row(case: dict[str, Any]) -> list[str]:
    """Format a case as a row; "-" stands for unknown values."""
    shapes = [format_size(case[name]) if case[name] else "-" for name in ("shape", "resampled_shape", "cropped_shape")]
    spacing = " x ".join(f"{side:.3g}" for side in case["spacing"]) if case["spacing"] else "-"
    counts = case["voxels_by_class"]
    labelled = str(sum(list(counts.values())[1:])) if counts else "-"
    shares = ["-" if case[name] is None else f"{case[name]:.0%}" for name in ("share_low", "share_high")]
    mark = "!" if case["problems"] else ""
    return [mark, case["split"], case["id"], shapes[0], spacing, *shapes[1:], " ".join(case["pad"]), labelled, *shares]


def statistics_row(name: str, values: dict[str, list[float]]) -> list[str]:
    """Format the statistics of one quantity along the three axes."""
    cells = (" / ".join(f"{value:.4g}" for value in axis) for axis in zip(*values.values(), strict=True))
    return [QUANTITIES[name], *cells]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows, the first of which is the header, with aligned columns."""
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


if __name__ == "__main__":
    sys.exit(run(main, parse_args(), to_lower="--num_workers"))

"""Find everything that is wrong with a dataset folder, and what training on it will meet.

    python -m tools.check_data --root /data/amos --dataset amos
    python -m tools.check_data --root /data/amos --dataset amos --headers_only --json > amos.json

Reads every volume of imagesTr, imagesVal and, where there is one, imagesTs, with their labels: pairing by id, headers,
agreement of shape and affine, truncated files, NaN, label values, cases in two splits. Prints a row a case, statistics
before and after resampling, axes that are padded to --roi_size, voxels by class, the share of voxels that the intensity
window saturates, and the size of main_train.py's --cache_dir. Problems are lines on stderr, all of them, with status 2.
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
from engine.data.datasets import DatasetDescription, find_description
from engine.data.header_checks import format_size
from engine.runtime.arguments import number
from engine.runtime.errors import OneLineParser, raise_problems, run
from load_datasets_transforms import training_pipelines

AXES = ("R-L", "A-P", "I-S")
QUANTITIES = {
    "spacing": "spacing, mm",
    "shape": "shape",
    "resampled_shape": "shape, resampled",
    "cropped_shape": "shape, cropped",
}
LEGEND = (
    "Axes run right-left, anterior-posterior, inferior-superior. cropped: estimate of what the foreground crop leaves, "
    "good to a voxel of the file at each end.\npad: axes shorter than --roi_size. low, high: voxels at or beyond the "
    "window's ends, of those in the foreground's box. !: a case with problems."
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(
        "check_data", description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--root", required=True, help="dataset folder with imagesTr, labelsTr, imagesVal, labelsVal")
    parser.add_argument(
        "--dataset", required=True, help="amos, amos_mri, kits, pancreas, hepatic or a .json description"
    )
    parser.add_argument("--roi_size", nargs=3, type=number(int, 1), default=[96, 96, 96], help="crop, voxels")
    parser.add_argument("--num_workers", type=number(int, 0), default=2, help="cases read at the same time")
    parser.add_argument("--headers_only", action="store_true", help="read no voxels: seconds instead of minutes")
    parser.add_argument("--json", action="store_true", help="print a JSON document instead of the tables")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Check, print the tables or the JSON, and stop with every problem."""
    description = find_description(args.dataset)
    splits, unpaired = find_splits(Path(args.root), description, test=True)
    report = examine_cases(splits, description, args.num_workers, full=not args.headers_only)
    problems = unpaired + report.problems
    results = {"root": args.root, "voxels_read": not args.headers_only, "problems": problems}
    results |= summarise(report, splits, description, args.roi_size)
    if args.json:
        print(json.dumps(results, indent=2, allow_nan=False))
    elif report.cases:
        print(as_text(results))
    raise_problems(problems)


def summarise(
    report: DatasetReport, splits: Splits, description: DatasetDescription, roi_size: Sequence[int]
) -> dict[str, Any]:
    """What is known of the cases, one by one and together, as JSON values.

    Args:
        report: of the cases.
        splits: the same cases.
        description: of the dataset.
        roi_size: crop, voxels.
    """
    padded = [axes_to_pad(case, roi_size) for case in report.cases]
    counts = [case.voxels_by_class for case in report.cases if case.voxels_by_class]
    known = {name: [value for case in report.cases if (value := getattr(case, name))] for name in QUANTITIES}
    return {
        "dataset": description.to_json(),
        "roi_size": list(roi_size),
        "warnings": report.warnings,
        "cases": [asdict(case) | {"pad": axes} for case, axes in zip(report.cases, padded, strict=True)],
        "statistics": {name: by_axis(values) for name, values in known.items() if values},
        "padded_cases": sum(map(bool, padded)),
        "padded_cases_by_axis": {axis: sum(axis in axes for axes in padded) for axis in AXES},
        "voxels_by_class": {name: sum(of[name] for of in counts) for name in description.classes},
        "cases_by_class": {name: sum(of[name] > 0 for of in counts) for name in description.classes},
        "cache_bytes": cache_bytes(report, splits, description, roi_size),
    }


def axes_to_pad(case: CaseReport, roi_size: Sequence[int]) -> list[str]:
    """The axes along which a case is shorter than the crop, as far as is known."""
    return [axis for axis, side, least in zip(AXES, case.final_shape or (), roi_size, strict=False) if side < least]


def by_axis(values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Minimum, median and maximum along each axis."""
    quantiles = np.quantile(values, (0, 0.5, 1), axis=0).tolist()
    return dict(zip(("minimum", "median", "maximum"), quantiles, strict=True))


def cache_bytes(report: DatasetReport, splits: Splits, description: DatasetDescription, roi_size: Sequence[int]) -> int:
    """What --cache_dir takes at most for the training and validation cases without problems."""
    pipelines = dict(zip(("training", "validation"), training_pipelines(description, roi_size, 1), strict=True))
    cases = [case for of_split in splits.values() for case in of_split]
    return sum(
        largest_bytes(case, pipelines[found.split])
        for case, found in zip(cases, report.cases, strict=True)
        if found.split in pipelines and not found.problems
    )


def as_text(results: dict[str, Any]) -> str:
    """The results as tables."""
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
        voxels, having = results["voxels_by_class"], results["cases_by_class"]
        rows = [[name, str(voxels[name]), str(having[name])] for name in voxels]
        text.append(table([["class", "voxels", "cases"], *rows]))
    text.append(f"--cache_dir takes at most {results['cache_bytes'] / 1e9:.3g} GB")
    if results["warnings"]:
        text.append("\n".join(f"warning: {warning}" for warning in results["warnings"]))
    return "\n\n".join(text)


def case_row(case: dict[str, Any]) -> list[str]:
    """A case in a line; "-" is what is not known."""
    shapes = [format_size(case[name]) if case[name] else "-" for name in ("shape", "resampled_shape", "cropped_shape")]
    spacing = " x ".join(f"{side:.3g}" for side in case["spacing"]) if case["spacing"] else "-"
    counts = case["voxels_by_class"]
    labelled = str(sum(list(counts.values())[1:])) if counts else "-"
    shares = ["-" if case[name] is None else f"{case[name]:.0%}" for name in ("share_low", "share_high")]
    mark = "!" if case["problems"] else ""
    return [mark, case["split"], case["id"], shapes[0], spacing, *shapes[1:], " ".join(case["pad"]), labelled, *shares]


def statistics_row(name: str, values: dict[str, list[float]]) -> list[str]:
    """One quantity, along the three axes."""
    cells = (" / ".join(f"{value:.4g}" for value in axis) for axis in zip(*values.values(), strict=True))
    return [QUANTITIES[name], *cells]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the header, as lines with aligned columns."""
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


if __name__ == "__main__":
    sys.exit(run(main, parse_args(), to_lower="--num_workers"))

"""Check a dataset folder for problems, and report what training on it involves.

    python -m tools.check_data --root /data/amos --dataset amos
    python -m tools.check_data --root /data/amos --dataset amos --headers_only --json > amos.json
    python -m tools.check_data --root /data/ours --write_description my_data.json

Reads every volume of imagesTr, imagesVal and, if present, imagesTs, with their labels, or those of a --split file.
Checks the pairing by id, headers, agreement of shape and affine, truncated files, NaN, label values, and cases that are
in two splits. Prints one row per case, statistics before and after resampling, the axes that are padded to --roi_size,
voxels per class, the share of voxels that the intensity window saturates, and the size of main_train.py's --cache_dir.
All problems are reported on stderr, one line each, with exit status 2.

--write_description chooses the fields that --dataset lacks, or all without it, and a crop, from the training cases; it
prints why, a line each, and writes a description and, beside it, the flags of main_train.py that go with it (.args).
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from engine.data.cache import largest_bytes
from engine.data.case_checks import CaseReport
from engine.data.cases import find_splits, validation_folder
from engine.data.dataset_checks import DatasetReport, examine_cases
from engine.data.datasets import DATASETS, DatasetDescription, find_description
from engine.data.drafts import Draft, make_draft
from engine.data.header_checks import format_size
from engine.data.plan import Plan, axes_to_pad, make_plan
from engine.data.plan_files import check_plan_files, flags_file, write_plan
from engine.data.plan_rules import AXES
from engine.data.split_file import find_split
from engine.runtime.arguments import (
    DEFAULT_ROI_SIZE,
    add_fix_affine_argument,
    add_split_arguments,
    number,
    positive,
)
from engine.runtime.errors import InputError, OneLineParser, raise_problems, run
from engine.runtime.warning_lines import Warnings, merge_warnings, print_warnings
from load_datasets_transforms import training_pipelines

DEFAULT_MEMORY = 11.5  # GB
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
    described = f"{', '.join(DATASETS)}, or the path of a JSON description; it may lack fields with --write_description"
    parser.add_argument("--dataset", help=described)
    add_split_arguments(parser)
    add_fix_affine_argument(parser)
    side, size = number(int, 1), "size of training crops, voxels (default: 96 96 96, or planned)"
    parser.add_argument("--roi_size", nargs=3, type=side, metavar=("D", "H", "W"), help=size)
    parser.add_argument("--num_workers", type=number(int, 0), default=2, metavar="N", help="cases read in parallel")
    parser.add_argument("--headers_only", action="store_true", help="skip the voxels: seconds instead of minutes")
    parser.add_argument("--json", action="store_true", help="print a JSON document instead of the tables")
    plan = parser.add_argument_group("plan")
    plan.add_argument(
        "--write_description", type=Path, metavar="FILE", help="plan what --dataset lacks, and write FILE (.json)"
    )
    memory = f"memory for a training step (default: {DEFAULT_MEMORY}, for the paper's two crops of 96 x 96 x 96)"
    plan.add_argument("--memory", type=positive, metavar="GB", help=memory)
    args = parser.parse_args(argv)
    if args.write_description and args.headers_only:
        parser.error("--headers_only: found it with --write_description, which needs the voxels, expected one of them")
    if args.memory and not args.write_description:
        parser.error("--memory: found it without --write_description, expected both")
    if not args.dataset and not args.write_description:
        parser.error(
            "--dataset: found none, expected a dataset's name, the path of a JSON file, or --write_description"
        )
    return args


def main(args: argparse.Namespace) -> None:
    """Check the dataset, print tables or JSON, and raise all problems together; if there are none, write the plan."""
    root, file = Path(args.root), args.write_description
    if file:
        check_plan_files(file)
    split = find_split(args.split, args.fold)
    draft = make_draft(args.dataset, root, args.fix_affine, args.num_workers, split) if file else None
    description = draft.description if draft else find_description(args.dataset, args.fix_affine)
    found = find_splits(root, description, test=True, split=split)
    if draft and not split and not any(validation_folder(root, kind).exists() for kind in ("images", "labels")):
        found.pop("validation", None)  # a plan is about the training cases
    splits = {name: part.cases for name, part in found.items()}
    sample = 0 if args.headers_only else None
    report = examine_cases(splits, description, args.num_workers, sample, foreground=draft is not None)
    problems = [problem for part in found.values() for problem in part.problems] + report.problems
    warnings = merge_warnings([*(part.warnings for part in found.values()), report.warnings])
    plan, roi_size = None, args.roi_size or DEFAULT_ROI_SIZE
    if draft and not problems:
        plan, problems = try_to_plan(draft, report, args)
    if plan:
        write_plan(file, plan, args.fix_affine)
        description, roi_size, report = plan.description, plan.roi_size, replace(report, cases=plan.cases)
        warnings = merge_warnings([warnings, plan.warnings])
    results = {
        "root": args.root,
        "split": split and split.to_plain(),
        "voxels_read": not args.headers_only,
        "problems": problems,
        "notes": description.notes,
        "warnings": [line for lines in warnings.values() for line in lines],
        **summarise(report, description, roi_size),
        **({"plan": plan.to_json()} if plan else {}),
    }
    if args.json:
        print(json.dumps(results, indent=2, allow_nan=False))
    else:
        notes = [*description.notes, *([f"split: {split}"] if split else [])]
        print_report(notes, results, warnings, list(plan_lines(plan, args)) if plan else [])
    raise_problems(problems)


def print_report(notes: Sequence[str], results: dict[str, Any], warnings: Warnings, plan: Sequence[str]) -> None:
    """Print notes, tables, warnings, and the lines of a plan, if any."""
    for line in notes:
        print(line)
    if results["cases"]:
        print(as_text(results), end="\n\n" if warnings or plan else "\n")
    print_warnings(warnings)
    for line in plan:
        print(line)


def try_to_plan(draft: Draft, report: DatasetReport, args: argparse.Namespace) -> tuple[Plan | None, list[str]]:
    """Make a plan of cases without problems; return it, or the problems of planning."""
    try:
        return make_plan(draft, report.cases, args.roi_size, args.memory or DEFAULT_MEMORY), []
    except InputError as mistake:
        return None, str(mistake).splitlines()


def plan_lines(plan: Plan, args: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a plan, and the command that trains with it."""
    yield "Plan:"
    yield from map(str, plan.choices)
    if not any(case.split == "validation" for case in plan.cases):
        yield f"validation: no case found in {args.root}; tools.make_split chooses some, for --split"
    flags = flags_file(args.write_description)
    yield f"wrote {args.write_description} and {flags}, to edit and to train with:"
    split = ["--split", args.split] if args.split else []
    fold = ["--fold", str(args.fold)] if args.fold is not None else []
    words = [f"@{flags}", "--root", args.root, *split, *fold, "--output", f"runs/{flags.stem}"]
    yield f"python main_train.py {shlex.join(words)}"


def summarise(report: DatasetReport, description: DatasetDescription, roi_size: Sequence[int]) -> dict[str, Any]:
    """Describe each case and the whole dataset in JSON values.

    Args:
        report: findings about the cases.
        description: description of the dataset.
        roi_size: size of training crops, voxels.
    """
    padded = [axes_to_pad(case, roi_size) for case in report.cases]
    counts = [case.voxels_by_class for case in report.cases if case.voxels_by_class]
    known = {name: [value for case in report.cases if (value := getattr(case, name))] for name in QUANTITIES}
    return {
        "dataset": description.to_json(),
        "roi_size": list(roi_size),
        "cases": [case_values(case) | {"pad": axes} for case, axes in zip(report.cases, padded, strict=True)],
        "statistics": {name: by_axis(values) for name, values in known.items() if values},
        "padded_cases": sum(map(bool, padded)),
        "padded_cases_by_axis": {axis: sum(axis in axes for axes in padded) for axis in AXES},
        "voxels_by_class": {name: sum(count[name] for count in counts) for name in description.classes},
        "cases_by_class": {name: sum(count[name] > 0 for count in counts) for name in description.classes},
        "cache_bytes": cache_bytes(report, description, roi_size),
    }


def case_values(case: CaseReport) -> dict[str, Any]:
    """Return what a report says of a case, except its intensities, in JSON values."""
    values = asdict(replace(case, foreground=None))
    del values["foreground"]
    return values


def by_axis(values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Compute minimum, median and maximum along each axis."""
    quantiles = np.quantile(values, (0, 0.5, 1), axis=0).tolist()
    return dict(zip(("minimum", "median", "maximum"), quantiles, strict=True))


def cache_bytes(report: DatasetReport, description: DatasetDescription, roi_size: Sequence[int]) -> int:
    """Compute the largest size of --cache_dir for the training and validation cases without problems."""
    pipelines = dict(zip(("training", "validation"), training_pipelines(description, roi_size, 1), strict=True))
    return sum(
        largest_bytes(case.resampled_shape, len(description.channels), pipelines[case.split])
        for case in report.cases
        if case.split in pipelines and not case.problems and case.resampled_shape
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

"""Score the predictions of any software against labels, and compare folders of predictions.

    python -m tools.evaluate --predictions predictions/rep3d --labels /data/amos/labelsTs --dataset amos
    python -m tools.evaluate --predictions predictions/rep3d predictions/nnunet --labels /data/amos/labelsTs \\
        --dataset amos --output comparison
    python -m tools.evaluate --predictions predictions/fold_0 --labels /data/pancreas/labelsTr --dataset pancreas \\
        --split splits/msd_pancreas.json --fold 0

Predictions are label maps <case>.nii.gz or <case>_seg.nii.gz on the grid of the label <case>.nii.gz, with the label
values of --dataset. Prints Dice, IoU, HD95, normalised surface Dice, sensitivity, precision and volume errors by class
and region, and for several folders a paired comparison. --output receives scores.csv (a row per case and class),
scores.json and, for several folders, comparison.png. docs/evaluation.md has the definitions.

All files are read and checked before the first case is scored: every problem is a line on stderr, with exit status 2. A
case that fails later is reported at the end, with exit status 1; the others are scored.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from engine.data.datasets import DATASETS, find_description
from engine.data.split_file import find_split
from engine.evaluation.pairs import Failure, Scored, check_pairs, find_pairs, name_folders, score_pairs
from engine.evaluation.score_files import check_files, write_files
from engine.evaluation.score_report import Evaluation, as_text
from engine.runtime.arguments import add_part_argument, add_split_arguments, number, positive
from engine.runtime.errors import CasesFailed, InputError, OneLineParser, run
from engine.runtime.files import make_output_folder
from engine.runtime.warning_lines import merge_warnings, print_warnings


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("evaluate", description=__doc__.splitlines()[0])
    predictions = "folders of label maps; two or more are compared"
    parser.add_argument("--predictions", nargs="+", metavar="DIR", required=True, help=predictions)
    parser.add_argument("--labels", metavar="DIR", required=True, help="folder of the labels")
    add_split_arguments(parser)
    add_part_argument(parser)
    parser.add_argument("--dataset", required=True, help=f"{', '.join(DATASETS)}, or the path of a JSON description")
    files = "folder for scores.csv, scores.json and comparison.png (default: print only)"
    parser.add_argument("--output", metavar="DIR", help=files)
    tolerance = "tolerance of the surface Dice of all classes, mm (default: that of the description)"
    parser.add_argument("--tolerance", type=positive, metavar="MM", help=tolerance)
    reference = "folder that the others are compared with (default: the first of --predictions)"
    parser.add_argument("--reference", metavar="DIR", help=reference)
    parser.add_argument("--allow_missing", action="store_true", help="leave out labels without a prediction")
    same = "take the affine of the label for predictions of the same shape"
    parser.add_argument("--fix_affine", action="store_true", help=same)
    parser.add_argument("--num_workers", type=number(int, 0), default=2, metavar="N", help="cases scored in parallel")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Check all files, score all cases, print the tables and write the files."""
    description = find_description(args.dataset, args.fix_affine, preprocessed=False)
    if args.tolerance is not None:
        tolerances = tuple((name, args.tolerance) for name in description.structures)
        description = replace(description, surface_tolerance=tolerances)
    for note in description.notes:
        print(note)
    folders = name_folders([Path(folder) for folder in args.predictions])
    reference = find_reference(args.reference, folders)
    output = None if args.output is None else Path(args.output)
    if output is not None:
        check_files(output)
    split = find_split(args.split, args.fold)
    if split is None and args.part is not None:
        raise InputError(f"--part: found {args.part} without --split, expected both or neither")
    wanted = None if split is None else split.ids(split.part_to_predict(args.part))
    pairs, missing, warnings = find_pairs(Path(args.labels), folders, args.allow_missing, wanted)
    print_warnings(merge_warnings([warnings, check_pairs(pairs, description, args.num_workers)]))
    if output is not None:
        make_output_folder(output)
    results = score_pairs(pairs, description, args.num_workers)
    scored = [result for result in results if isinstance(result, Scored)]
    failures = [result.reason for result in results if isinstance(result, Failure)]
    if scored:
        found = Evaluation(description, args.labels, folders, missing, scored, failures, reference)
        print(as_text(found))
        if output is not None:
            write_files(output, found)
    if failures:
        raise CasesFailed("\n".join(failures))


def find_reference(given: str | None, folders: dict[str, Path]) -> str:
    """Return the name of the folder of --reference, by default the first."""
    if given is None:
        return next(iter(folders))
    for name, folder in folders.items():
        if given == name or os.path.abspath(given) == os.path.abspath(folder):
            return name
    known = ", ".join(map(str, folders.values()))
    raise InputError(f"--reference: found {given}, expected one of --predictions ({known})")


if __name__ == "__main__":
    sys.exit(run(main, parse_args(), to_lower="--num_workers"))

"""Divide the cases of a dataset at random, and write a split file for main_train.py, test_seg.py and check_data.

    python -m tools.make_split --root /data/amos --dataset amos --folds 5 --seed 0 --output my_split.json
    python -m tools.make_split --ids cases.txt --validation 0.1 --test 0.1 --output my_split.json

The cases are all those of the dataset folder that have a label, whatever their folder, or the ids of a text file, one
per line. The same ids and seed give the same split everywhere. Another file of the same name is never overwritten.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from engine.data.cases import find_all_cases
from engine.data.datasets import DATASETS, find_description
from engine.data.division import divide
from engine.data.split_file import SplitFile, write_split_file
from engine.runtime.arguments import number
from engine.runtime.errors import InputError, OneLineParser, raise_problems, run
from engine.runtime.warning_lines import print_warnings
from engine.runtime.wording import count_of, list_some

FOLDS = 5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("make_split", description=__doc__.splitlines()[0])
    parser.add_argument("--root", metavar="DIR", help="dataset folder, with --dataset; or else --ids")
    parser.add_argument("--dataset", help=f"{', '.join(DATASETS)}, or the path of a JSON description")
    parser.add_argument("--ids", metavar="FILE", help="text file with an id per line, in place of --root")
    folds = f"number of folds for cross-validation (default: {FOLDS})"
    parser.add_argument("--folds", type=number(int, 2), metavar="N", help=folds)
    share = number(float, 0, 1, open_high=True)
    alone = "one fold, with this share of the cases for validation, in place of --folds"
    parser.add_argument("--validation", type=share, metavar="SHARE", help=alone)
    parser.add_argument("--test", type=share, default=0.0, metavar="SHARE", help="share of the cases for the test")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="N", help="seed of the division")
    parser.add_argument("--output", metavar="FILE", required=True, help="split file to write")
    parser.add_argument("--name", help="name of the split (default: that of the file)")
    parser.add_argument("--source", metavar="TEXT", default="", help="where the ids are from, noted in the file")
    args = parser.parse_args(argv)
    if (args.root is None) == (args.ids is None) or (args.root is None) != (args.dataset is None):
        parser.error("expected either --root and --dataset, or --ids")
    if args.folds is not None and args.validation is not None:
        parser.error("--validation: found it with --folds, expected one of them")
    return args


def main(args: argparse.Namespace) -> None:
    """Find the ids, divide them, and write the file."""
    ids = read_ids(Path(args.ids)) if args.root is None else find_ids(Path(args.root), args.dataset)
    folds, test = divide(ids, args.seed, args.folds or FOLDS, args.validation, args.test)
    into = f"--validation {args.validation}" if args.validation is not None else f"--folds {args.folds or FOLDS}"
    how = f"{count_of(len(ids), 'id')} divided by make_split {into} --test {args.test:g} --seed {args.seed}"
    output = Path(args.output)
    provenance = f"{args.source}; {how}" if args.source else how
    content = SplitFile(args.name or output.stem, provenance, args.seed, folds, test)
    write_split_file(output, content)
    for fold in range(len(folds)):
        print(content.choose(fold))


def find_ids(root: Path, dataset: str) -> list[str]:
    """Find the ids of all cases of a dataset folder that have a label."""
    found = find_all_cases(root, find_description(dataset, preprocessed=False))
    print_warnings(found.warnings)
    raise_problems(found.problems)
    return _each_once([case["id"] for case in found.cases if "label" in case], f"--root: {root}")


def read_ids(path: Path) -> list[str]:
    """Read a text file with an id per line; blank lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"--ids: {path} cannot be read ({error.strerror}), expected a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--ids: {path} is not UTF-8, expected a text file with an id per line") from error
    return _each_once([line.strip() for line in lines if line.strip()], f"--ids: {path}")


def _each_once(ids: list[str], source: str) -> list[str]:
    if twice := sorted(name for name, count in Counter(ids).items() if count > 1):
        raise InputError(f"{source}: found {list_some(twice)} twice, expected each id once")
    return ids


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

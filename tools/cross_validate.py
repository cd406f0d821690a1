"""Cross-validate: train each fold of a split, predict its validation cases, and tabulate the Dice of all cases.

    python -m tools.cross_validate --root /data/pancreas --output runs/pancreas @recipes/rep3d_pancreas.args
    python -m tools.cross_validate --root /data/pancreas --output runs/pancreas @recipes/rep3d_pancreas.args --folds 2
    python -m tools.cross_validate --root /data/pancreas --output runs/pancreas --split splits/msd_pancreas.json \\
        --collect_only

All further flags, also those after --, are main_train.py's. Fold k is trained in OUTPUT/fold_k and predicted in
OUTPUT/fold_k/predictions. The same command again resumes what was begun and leaves out what is finished. At the end,
unless only some folds were asked for, dice.csv and dice.json hold the Dice of every case, its mean over all cases, and
mean and standard deviation over the folds.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

import main_train
from engine.data.datasets import find_description
from engine.data.split_file import read_split_file
from engine.data.splits import VALIDATION, Split
from engine.evaluation.metrics import DiceTable, format_dice, mean_over_cases, mean_over_classes, plain_dice
from engine.runtime.arguments import hours, number
from engine.runtime.child_processes import describe_status, locked, run_script
from engine.runtime.errors import SOME_CASES_FAILED, STOPPED, CasesFailed, InputError, OneLineParser, Stopped, run
from engine.runtime.files import BEST, LAST, PREVIOUS, make_output_folder, write_csv, write_text
from engine.runtime.stop_requests import StopRequests
from engine.runtime.wording import count_of, list_some
from engine.training.start import complete_as_begun
from engine.training.state import differing_flags
from engine.weights.checkpoints import load_checkpoint

ROOT = Path(__file__).parents[1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; flags of main_train.py are collected in ``flags``."""
    parser = OneLineParser("cross_validate", description=__doc__)
    parser.add_argument("--root", metavar="DIR", required=True, help="dataset folder")
    parser.add_argument("--split", metavar="FILE", required=True, help="split file with the folds")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the runs and the table")
    parser.add_argument("--folds", nargs="+", type=number(int, 0), metavar="K", help="only these folds, from 0")
    parser.add_argument("--collect_only", action="store_true", help="train nothing, tabulate what is there")
    limit = "save and stop after this time, with exit status 75"
    parser.add_argument("--max_hours", type=hours, metavar="HOURS", help=limit)
    args, flags = parser.parse_known_args(argv)
    args.flags = [word for word in flags if word != "--"]
    return args


def main(args: argparse.Namespace) -> None:
    """Train and predict what is missing, and tabulate."""
    content, output = read_split_file(Path(args.split)), Path(args.output)
    folds = {fold: content.choose(fold) for fold in sorted(set(args.folds or range(len(content.folds))))}
    make_output_folder(output)
    if not args.collect_only:
        trainings = {fold: training_flags(args, fold) for fold in folds}
        for words in trainings.values():  # a mistake in a flag is found before any training
            main_train.parse_args(words)
        with StopRequests(args.max_hours) as stop:
            for fold, split in folds.items():
                run_fold(split, trainings[fold], stop)
    tables, missing = read_tables(folds, output)
    if tables and (args.collect_only or args.folds is None):
        write_tables(tables, output)
    if missing:
        raise CasesFailed("\n".join(missing))


def fold_folder(output: Path, fold: int) -> Path:
    """Return the folder of a fold."""
    return output / f"fold_{fold}"


def training_flags(args: argparse.Namespace, fold: int) -> list[str]:
    """Compose the flags of main_train.py for a fold."""
    output = str(fold_folder(Path(args.output), fold))
    return [*args.flags, "--root", args.root, "--split", args.split, "--fold", str(fold), "--output", output]


def run_fold(split: Split, words: list[str], stop: StopRequests) -> None:
    """Train a fold and predict its validation cases, as far as that is not finished.

    Args:
        split: the fold.
        words: flags of main_train.py.
        stop: requests to stop.
    Raises:
        Stopped: stopping was requested, and what is done is saved.
        InputError: training or prediction failed.
    """
    flags = main_train.parse_args(words)
    folder = Path(flags.output)
    with locked(folder, "--output") as lock:
        trained = is_trained(folder, vars(flags), split)
        if not trained:
            resume = ["--resume"] if (folder / LAST).exists() or (folder / PREVIOUS).exists() else []
            run_or_raise("main_train.py", [*words, *resume], split, stop, lock)
        if trained and not missing_cases(folder, split):
            print(f"fold {split.fold}: finished already", flush=True)
        else:
            run_or_raise("test_seg.py", prediction_flags(flags), split, stop, lock)


def is_trained(folder: Path, flags: dict[str, Any], split: Split) -> bool:
    """Check whether a folder holds the finished run of a fold with these flags.

    Anything else is left to main_train.py, which resumes a run, or says why it does not.
    """
    try:
        content = load_checkpoint(folder / LAST, "--output")
        if flags["pretrain"]:
            complete_as_begun(flags, folder)
        progress = content["progress"]
        done = progress["iteration"] == flags["max_iter"] and not progress["awaits_evaluation"]
        same = content["split"] == split.to_plain() and content["args"]["batch_size"] == flags["batch_size"]
        description = find_description(flags["dataset"], flags["fix_affine"]).to_json()
        return done and same and content["description"] == description and not differing_flags(flags, content)
    except (InputError, KeyError, TypeError, AttributeError):
        return False


def prediction_flags(flags: argparse.Namespace) -> list[str]:
    """Compose the flags of test_seg.py from those of main_train.py."""
    data = ["--root", flags.root, "--split", flags.split, "--fold", str(flags.fold), "--part", VALIDATION]
    files = ["--output", str(Path(flags.output, "predictions")), "--trained_weights", str(Path(flags.output, BEST))]
    device = ["--gpu", flags.gpu, "--amp", flags.amp, "--sw_batch_size", str(flags.sw_batch_size)]
    return [*data, *files, *device, *(["--fix_affine"] if flags.fix_affine else [])]


def run_or_raise(script: str, words: Sequence[str], split: Split, stop: StopRequests, lock: int) -> None:
    """Run a script of the repository for a fold; InputError if it fails, Stopped if it stops."""
    print(f"fold {split.fold}: {script}", flush=True)
    status = run_script([sys.executable, str(ROOT / script), *words], stop, lock)
    if status == STOPPED:
        raise Stopped(f"{script} of fold {split.fold}, go on with the same command")
    if status not in (0, SOME_CASES_FAILED):  # the latter are named at the end, with those of other folds
        raise InputError(f"fold {split.fold}: {script} {describe_status(status)}, expected 0 (see its lines above)")


def missing_cases(folder: Path, split: Split) -> list[str]:
    """List the validation cases of a fold that have no Dice yet."""
    try:
        table = DiceTable.read(folder / "predictions" / "dice.json")
    except InputError:
        return list(split.ids(VALIDATION))
    return [name for name in split.ids(VALIDATION) if name not in table.cases]


def read_tables(folds: Mapping[int, Split], output: Path) -> tuple[dict[int, DiceTable], list[str]]:
    """Read the Dice of the folds that are finished.

    Returns: a table by fold, and a line for each fold that lacks a case.
    Raises:
        InputError: the predictions are of other cases.
    """
    tables, lines = {}, []
    for fold, split in folds.items():
        folder, ids = fold_folder(output, fold), split.ids(VALIDATION)
        if missing := missing_cases(folder, split):
            found = f"found no Dice of {len(missing)} of {len(ids)} validation cases in {folder}/predictions"
            lines.append(f"fold {fold}: {found} ({list_some(missing)})")
            continue
        tables[fold] = DiceTable.read(folder / "predictions" / "dice.json")
        if others := sorted(tables[fold].cases.keys() - set(ids)):
            expected = f"expected the validation cases of the split {split.name!r}"
            raise InputError(f"fold {fold}: found {list_some(others)} in {folder}/predictions, {expected}")
    return tables, lines


def write_tables(tables: Mapping[int, DiceTable], output: Path) -> None:
    """Write dice.csv and dice.json, and print the table of classes."""
    first = next(iter(tables.values()))
    if any((table.classes, table.regions) != (first.classes, first.regions) for table in tables.values()):
        raise InputError(f"--output: found folds of different classes in {output}, expected the same")
    names = [*first.classes, *first.regions, "mean"]

    def named(dice: Iterable[float]) -> dict[str, float | None]:
        return dict(zip(names, map(plain_dice, dice), strict=True))

    means = {fold: with_mean(mean_over_cases(list(table.cases.values())), first) for fold, table in tables.items()}
    cases = [(fold, name, dice) for fold, table in tables.items() for name, dice in table.cases.items()]
    summary = {
        "mean over cases": with_mean(mean_over_cases([dice for _, _, dice in cases]), first),
        "mean over folds": mean_over_cases(list(means.values())),
        "SD over folds": np.array([spread(values) for values in zip(*means.values(), strict=True)]),
    }
    rows = [[fold, name, *map(plain_dice, with_mean(dice, first))] for fold, name, dice in cases]
    rows += [[None, name, *map(plain_dice, dice)] for name, dice in summary.items()]
    write_csv(output / "dice.csv", ["fold", "case", *names], rows)
    report = {
        **{name: named(dice) for name, dice in summary.items()},
        "folds": {fold: named(dice) for fold, dice in means.items()},
        "cases": [{"fold": fold, "case": name, **named(with_mean(dice, first))} for fold, name, dice in cases],
    }
    write_text(output / "dice.json", json.dumps(report, indent=2) + "\n")
    columns = {**summary, **{f"fold {fold}": dice for fold, dice in means.items()}}
    table = [[name, *(format_dice(dice[place]) for dice in columns.values())] for place, name in enumerate(names)]
    print(f"Dice of {count_of(len(cases), 'case')} in {count_of(len(tables), 'fold')}")
    head, style = ["", *columns], {"tablefmt": "plain", "colalign": ("left",), "colglobalalign": "right"}
    print(tabulate([head, *table], disable_numparse=True, **style))


def with_mean(dice: np.ndarray, table: DiceTable) -> np.ndarray:
    """Append the mean over the classes, without the regions, to the Dice of classes and regions."""
    return np.append(dice, mean_over_classes(dice[: len(table.classes)]))


def spread(values: Iterable[float]) -> float:
    """Compute the standard deviation (n - 1) of the means of folds; NaN unless two of them have one."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.stdev(known) if len(known) > 1 else math.nan


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

"""Make the table and the figures of an experiment from its CSV tables, finished or not.

    python -m experiments.report masks

Prints the table, writes figure.png (and masks.png or taps.png, if these were measured) beside results.csv, and updates
the table in the experiment's README.md, if it has one for this scale.

A score is the mean over the classes. The table has its mean over the cases, with the standard deviation over the seeds.
The difference from the reference arm is taken case by case, of the means over the seeds that both arms have; beside it
are the 95 % bootstrap interval over the cases and the p-value of a Wilcoxon signed-rank test, corrected by Holm for the
number of arms. Interval and p-value describe these cases and seeds: they do not include the spread over further seeds.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from benchmarks.report import replace_section
from engine.evaluation.metrics import mean_over_cases, mean_over_classes
from engine.evaluation.pictures import save_png
from engine.evaluation.statistics import Comparison, compare, holm
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import write_text
from experiments.experiment import FOLDER, NAMES, SCALES, read_experiment
from experiments.figures import MEASURED, Scores, draw_scores
from experiments.results import RESULTS, Row, read_rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("experiments.report", description=__doc__)
    parser.add_argument("experiment", choices=NAMES, metavar="EXPERIMENT", help=", ".join(NAMES))
    parser.add_argument("--scale", default="standard", choices=SCALES, help="scale of the results")
    results = "folder of the results (default: experiments/EXPERIMENT/SCALE)"
    parser.add_argument("--results", metavar="DIR", help=results)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Print the table, draw the figures, and update the README."""
    experiment = read_experiment(args.experiment, args.scale)
    folder = Path(args.results or FOLDER / experiment.name / args.scale)
    if not (folder / RESULTS).exists():
        raise InputError(f"--results: found no {folder / RESULTS}, expected those of python -m experiments.run")
    scores, classes = collect(read_rows(folder / RESULTS))
    table = make_table(scores, classes, list(experiment.arms), experiment.reference)
    print(table)
    save_png(draw_scores(scores, list(experiment.arms)), folder / "figure.png")
    for name, draw in MEASURED.items():
        if (folder / f"{name}.csv").exists():
            save_png(draw(read_rows(folder / f"{name}.csv"), list(experiment.arms)), folder / f"{name}.png")
    readme = FOLDER / experiment.name / "README.md"
    begin, end = f"<!-- {args.scale} -->\n", f"<!-- end of {args.scale} -->"
    if args.results is None and begin in readme.read_text():
        write_text(readme, replace_section(readme, begin, f"{table}\n", end))


def collect(rows: Sequence[Row]) -> tuple[Scores, list[str]]:
    """Arrange rows of results.csv by arm and seed, cases and classes in the order of their names; NaN where absent."""
    cases = sorted({row["case"] for row in rows})
    classes = list(dict.fromkeys(row["class"] for row in rows))
    scores: Scores = {}
    for row in rows:
        shape = len(cases), len(classes)
        table = scores.setdefault(row["arm"], {}).setdefault(int(row["seed"]), np.full(shape, np.nan))
        table[cases.index(row["case"]), classes.index(row["class"])] = float(row["dice"] or "nan")
    return scores, classes


def make_table(scores: Scores, classes: Sequence[str], arms: Sequence[str], reference: str) -> str:
    """Format the table of an experiment; arms with fewer seeds than others are marked as unfinished."""
    seeds = max(len(runs) for runs in scores.values())
    compared = compare_arms(scores, arms, reference)
    corrected = dict(zip(compared, holm([comparison.p for comparison in compared.values()]), strict=True))
    rows = []
    for arm in arms:
        runs = scores.get(arm, {})
        count = f"{len(runs)}" if len(runs) == seeds else f"{len(runs)} of {seeds}, unfinished"
        means = [mean_over_cases(list(table)) for table in runs.values()]
        columns = [[mean_over_classes(mean), *mean] for mean in means]
        cells = [_spread(column) for column in zip(*columns, strict=True)] or [""] * (1 + len(classes))
        rows.append([arm, count, *cells, *_difference(compared.get(arm), corrected.get(arm), arm == reference)])
    head = ["arm", "seeds", "mean Dice", *classes, f"difference from {reference}", "p (Holm)"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def compare_arms(scores: Scores, arms: Sequence[str], reference: str) -> dict[str, Comparison]:
    """Compare every arm with the reference, by the means over their common seeds and over the classes of each case."""
    compared = {}
    for arm in arms:
        common = sorted(scores.get(arm, {}).keys() & scores.get(reference, {}).keys())
        if arm != reference and common:
            means = [np.mean([scores[name][seed] for seed in common], axis=0) for name in (arm, reference)]
            compared[arm] = compare(*(np.array([mean_over_classes(case) for case in table]) for table in means))
    return compared


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _difference(comparison: Comparison | None, p: float | None, is_reference: bool) -> tuple[str, str]:
    if comparison is None or p is None:
        return "reference" if is_reference else "", ""
    interval = f" ({comparison.low:+.3f} to {comparison.high:+.3f})" if not math.isnan(comparison.low) else ""
    return f"{comparison.difference:+.3f}{interval}", "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

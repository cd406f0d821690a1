"""Make the tables and the figures of an experiment from its CSV tables, finished or not.

    python -m experiments.report masks

Prints the tables, writes figure.png (and one picture of each further measurement, such as loss.png) beside results.csv,
and updates the tables in the experiment's README.md, if it has some for this scale.

The first table has the mean Dice over classes and cases, with its standard deviation over the seeds. The second one has
the differences between arms over the seeds that both have, with their standard deviation over these seeds and, in
brackets, the 95 % bootstrap interval over the cases, each case being the mean over seeds and classes. The p-value is
that of Wilcoxon's signed-rank test over the same cases, corrected by Holm for the number of comparisons. Interval and
p-value tell whether the difference holds for other cases, with these seeds; the deviation, whether for other seeds.
If masks were measured, a third table has their size at the end of the training, over all blocks and seeds; if taps
were, another one has the share of their way that they have left after about a fifth of it.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from benchmarks.report import replace_section
from engine.evaluation.metrics import mean_over_cases, mean_over_classes
from engine.evaluation.pictures import save_png
from engine.evaluation.statistics import Comparison, compare, holm
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import write_text
from experiments.experiment import FOLDER, NAMES, SCALES, read_experiment
from experiments.figures import MEASURED, Scores, draw_scores, early_snapshot, select
from experiments.results import RESULTS, Row, read_table

TAP_STAGES, TAP_DISTANCES = (0, 1), (2, 12)  # of the table of taps; later stages have none so far from the centre
SEEDS = 3  # of a finished experiment, the fewest that show a spread


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("experiments.report", description=__doc__)
    parser.add_argument("experiment", choices=NAMES, metavar="EXPERIMENT", help=", ".join(NAMES))
    parser.add_argument("--scale", default="standard", choices=SCALES, help="scale of the results")
    results = "folder of the results (default: experiments/EXPERIMENT/SCALE)"
    parser.add_argument("--results", metavar="DIR", help=results)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Print the tables, draw the figures, and update the README."""
    experiment = read_experiment(args.experiment, args.scale)
    arms, folder = list(experiment.arms), Path(args.results or FOLDER / experiment.name / args.scale)
    if not (folder / RESULTS).exists():
        raise InputError(f"--results: found no {folder / RESULTS}, expected those of python -m experiments.run")
    rows = read_table(folder / RESULTS, arms)
    paths = {name: folder / f"{name}.csv" for name in MEASURED if (folder / f"{name}.csv").exists()}
    measured = {name: read_table(path, arms, rows[0]["code"]) for name, path in paths.items()}
    scores, classes = collect(rows)
    tables = format_tables(scores, classes, arms, experiment.comparisons, measured)
    print(tables)
    save_png(draw_scores(scores, arms), folder / "figure.png")
    for name, own_rows in measured.items():
        save_png(MEASURED[name](own_rows, arms), folder / f"{name}.png")
    readme = FOLDER / experiment.name / "README.md"
    begin, end = f"<!-- {args.scale} -->\n", f"<!-- end of {args.scale} -->"
    if args.results is None and begin in readme.read_text():
        write_text(readme, replace_section(readme, begin, f"{tables}\n", end))


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


def format_tables(
    scores: Scores,
    classes: Sequence[str],
    arms: Sequence[str],
    comparisons: Sequence[tuple[str, str]],
    measured: Mapping[str, Sequence[Row]],
) -> str:
    """Format the tables of scores and, if there are any, of comparisons and of the rows of masks.csv and taps.csv."""
    tables = [make_table(scores, classes, arms)]
    if compared := [pair for pair in comparisons if scores.get(pair[0], {}).keys() & scores.get(pair[1], {}).keys()]:
        tables.append(make_comparisons(scores, compared))
    if "masks" in measured:
        tables.append(make_mask_table(measured["masks"], arms))
    if "taps" in measured:
        tables.append(make_tap_table(measured["taps"], arms))
    return "\n\n".join(tables)


def make_table(scores: Scores, classes: Sequence[str], arms: Sequence[str]) -> str:
    """Format the scores of each arm; arms with fewer seeds than ``SEEDS``, or than others, are marked as unfinished."""
    seeds = max(SEEDS, *(len(runs) for runs in scores.values()))
    rows = []
    for arm in arms:
        runs = scores.get(arm, {})
        count = f"{len(runs)}" if len(runs) == seeds else f"{len(runs)} of {seeds}, unfinished"
        means = [mean_over_cases(list(table)) for table in runs.values()]
        columns = [[mean_over_classes(mean), *mean] for mean in means]
        rows.append([arm, count, *(_spread(column) for column in zip(*columns, strict=True))])
    return tabulate(rows, ["arm", "seeds", "mean Dice", *classes], tablefmt="github", disable_numparse=True)


def make_comparisons(scores: Scores, comparisons: Sequence[tuple[str, str]]) -> str:
    """Format the differences between pairs of arms."""
    pairs = [compare_arms(scores[arm], scores[reference]) for arm, reference in comparisons]
    corrected = holm([pair.comparison.p for pair in pairs])
    rows = [
        [arm, reference, *_difference(pair, p)]
        for (arm, reference), pair, p in zip(comparisons, pairs, corrected, strict=True)
    ]
    return tabulate(rows, ["arm", "compared with", "difference", "p (Holm)"], tablefmt="github", disable_numparse=True)


def make_mask_table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Format the size of the learned masks' corrections, and the smallest value of the masks."""
    final = select(rows, iteration=max((row["iteration"] for row in rows), key=int))
    cells = []
    for arm in arms:
        corrections, smallest = (
            [float(row["value"]) for row in select(final, arm=arm, quantity=quantity)]
            for quantity in ("correction", "smallest")
        )
        if corrections:
            numbers = np.median(corrections), max(corrections), min(smallest)
            cells.append([arm, *(f"{number:.3f}" for number in numbers)])
    head = ["learned mask", "mean of |M - P| / P: median block", "largest", "smallest M"]
    return tabulate(cells, [name.replace("|", "\\|") for name in head], tablefmt="github", disable_numparse=True)


def make_tap_table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Format the share of their way that taps near the centre and far from it have left at the early snapshot.

    Means over the blocks of a stage, with their standard deviation over the seeds.
    """
    early = early_snapshot(rows)
    left = select(rows, quantity="remaining", iteration=early)
    places = [(stage, distance) for stage in TAP_STAGES for distance in TAP_DISTANCES]
    cells = []
    for arm in arms:
        cells.append([arm])
        for stage, distance in places:
            by_seed = defaultdict(list)
            for row in select(left, arm=arm, distance=distance):
                if f".stages.{stage}." in row["block"]:
                    by_seed[row["seed"]].append(float(row["value"]))
            cells[-1].append(_spread([float(np.mean(values)) for values in by_seed.values()]) if by_seed else "")
    heads = [f"stage {stage + 1}, distance {distance}" for stage, distance in places]
    head = [f"share of the way left at iteration {early}", *heads]
    return tabulate(cells, head, tablefmt="github", disable_numparse=True)


class Pair(NamedTuple):
    """Comparison of two arms.

    Args:
        comparison: over the cases, each being the mean over the common seeds.
        by_seed: mean difference of each common seed.
    """

    comparison: Comparison
    by_seed: list[float]


def compare_arms(runs: dict[int, NDArray[np.float64]], others: dict[int, NDArray[np.float64]]) -> Pair:
    """Compare two arms by the seeds that both have; a score that one of them lacks (NaN) counts in neither.

    Shape: tables by seed, (cases, classes).
    """
    differences = np.array([runs[seed] - others[seed] for seed in sorted(runs.keys() & others.keys())])
    by_seed = [mean_over_classes(mean_over_cases(list(table))) for table in differences]
    by_case = mean_over_cases([np.array([mean_over_classes(case) for case in table]) for table in differences])
    return Pair(compare(by_case), by_seed)


def _spread(values: Sequence[float]) -> str:
    """Format a mean, and the standard deviation over the seeds if there are several."""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _difference(pair: Pair, p: float) -> tuple[str, str]:
    """Format the difference, its standard deviation over the seeds, its interval over the cases; and the p-value."""
    found, seeds = pair
    spread = f" ± {np.std(seeds, ddof=1):.3f}" if len(seeds) > 1 else ""
    interval = f" ({found.low:+.3f} to {found.high:+.3f})" if not math.isnan(found.low) else ""
    digits = "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"{found.difference:+.3f}{spread}{interval}", digits


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

"""Tables of the scores of one or more folders of predictions, as text, CSV rows and JSON."""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from engine.data.datasets import NEUTRAL, DatasetDescription
from engine.evaluation.comparison import Row, compare_folders
from engine.evaluation.pairs import Scored
from engine.evaluation.scores import ABSENT_RULE, METRICS, TITLES, Summary, absent_from, summarise
from engine.runtime.versions import software_versions
from engine.runtime.wording import count_of

WORDS = ("absent_from", "method")  # columns of text, which may be empty or look like numbers
CSV_HEADER = ("case", "class", *METRICS, "tolerance_mm", *WORDS)
DIGITS = 6  # of numbers in files, as in those of test_seg.py
DECIMALS = {"hd95_mm": ".2f", "volume_error_ml": "+.2f", "relative_volume_error": "+.3f"}  # of numbers in tables
SHARE = ".3f"  # those of all other metrics
LEGEND = (
    "Mean ± standard deviation over the n cases that have a score; mean: the mean of the class means ± the deviation\n"
    "of the cases' own means. HD95: by surface voxels, the larger of both directions. NSD: by surface area, at the\n"
    "tolerance (tol.). Error: volume of the prediction minus that of the label; relative: to the label's, if any."
)


@dataclass(frozen=True)
class Evaluation:
    """Scores of one or more folders of predictions.

    Args:
        description: classes, regions and tolerances.
        labels: folder of labels.
        folders: folders of predictions by name.
        missing: ids of the labels without a prediction in each folder.
        scored: scores by case.
        failures: a line for each case that failed.
        reference: name of the folder that the others are compared with.
    """

    description: DatasetDescription
    labels: str
    folders: dict[str, Path]
    missing: dict[str, list[str]]
    scored: list[Scored]
    failures: list[str]
    reference: str

    @property
    def classes(self) -> int:
        """Number of foreground classes, the first of the structures."""
        return len(self.description.classes) - 1

    def scores_of(self, method: str) -> list[NDArray[np.float64]]:
        """Return the scores of all cases of a folder, (structures, metrics) each."""
        return [case.scores[method] for case in self.scored if method in case.scores]

    def summary(self, method: str) -> dict[str, dict[str, Summary]]:
        """Summarise the scores of a folder by structure and metric; nothing if it has no case."""
        scores = self.scores_of(method)
        return summarise(scores, list(self.description.structures), self.classes) if scores else {}

    def common(self) -> dict[str, list[NDArray[np.float64]]]:
        """Return the scores of the cases that all folders have, by folder."""
        cases = [case.scores for case in self.scored if case.scores.keys() == self.folders.keys()]
        return {method: [scores[method] for scores in cases] for method in self.folders}

    def compare(self) -> list[Row]:
        """Compare the folders by the cases that all of them have; nothing without such a case."""
        common = self.common()
        return compare_folders(common, self.reference, self.classes) if common[self.reference] else []


def as_text(found: Evaluation) -> str:
    """Format a table for each folder and, if there are several, one of their comparison."""
    parts = [_method_table(found, method) for method in found.folders if found.scores_of(method)]
    parts.append(LEGEND)
    if len(found.folders) > 1:
        parts.append(_comparison_table(found))
    return "\n\n".join(parts)


def csv_rows(found: Evaluation) -> list[list[object]]:
    """Make a row for each folder, case and structure; None for a score that does not exist."""
    tolerances = found.description.tolerances
    return [
        [case.case, name, *map(_plain, row), tolerances[name], absent_from(row), method]
        for method in found.folders
        for case in found.scored
        if method in case.scores
        for name, row in zip(found.description.structures, case.scores[method], strict=True)
    ]


def as_json(found: Evaluation) -> dict[str, Any]:
    """Collect settings, definitions, means and comparisons as plain values; None for what does not exist."""
    return {
        "dataset": {name: value for name, value in found.description.to_json().items() if name not in NEUTRAL},
        "labels": found.labels,
        "predictions": {method: str(folder) for method, folder in found.folders.items()},
        "fix_affine": found.description.fix_affine,
        "versions": software_versions(),
        "definitions": METRICS,
        "absent": ABSENT_RULE,
        "tolerance_mm": found.description.tolerances,
        "cases": {method: len(found.scores_of(method)) for method in found.folders},
        "missing": found.missing,
        "failures": found.failures,
        "means": {
            method: {
                structure: {metric: _plain_values(summary._asdict()) for metric, summary in summaries.items()}
                for structure, summaries in found.summary(method).items()
            }
            for method in found.folders
        },
        "reference": found.reference if len(found.folders) > 1 else None,
        "comparisons": [
            {"method": row.method, "metric": row.metric, **_plain_values(asdict(row.comparison))}
            for row in found.compare()
        ],
    }


def _method_table(found: Evaluation, method: str) -> str:
    tolerances = {name: f"{distance:g}" for name, distance in found.description.tolerances.items()}
    head = ["class", "n", *TITLES.values(), "tol., mm"]
    body = [
        [
            name,
            str(summaries["dice"].n),
            *(_spread(summaries[metric], DECIMALS.get(metric, SHARE)) for metric in TITLES),
            tolerances.get(name, ""),
        ]
        for name, summaries in found.summary(method).items()
    ]
    scores = found.scores_of(method)
    absent = Counter(absent_from(row) for case in scores for row in case[: found.classes])
    title = f"{method}: {count_of(len(scores), 'case')} of {found.folders[method]}"
    one = f"{absent['prediction']} from the prediction only, {absent['label']} from the label only"
    counts = f"Absent classes: {absent['both']} from both (no score), {one} (Dice 0, HD95 the volume's diagonal)."
    return "\n".join([title, _align([head, *body], left=1), counts])


def _spread(summary: Summary, digits: str) -> str:
    if math.isnan(summary.mean):
        return "-"
    deviation = "" if math.isnan(summary.sd) else f" ± {summary.sd:{digits.lstrip('+')}}"
    return f"{summary.mean:{digits}}{deviation}"


def _comparison_table(found: Evaluation) -> str:
    rows = found.compare()
    if not rows:
        return "No comparison: no case has a prediction in all folders."
    cases, tests = count_of(len(found.common()[found.reference]), "case"), count_of(len(rows), "test")
    titles = [
        f"Differences from {found.reference} over {cases} that all folders have, each the mean over its classes.",
        f"p: Wilcoxon signed-rank test, corrected by Holm for {tests}. Interval of the mean: 95 %, by bootstrap.",
    ]
    head = ["", "", "mean", "interval", "median", "rank-biserial", "p"]
    body = []
    for method, metric, compared in rows:
        digits = DECIMALS.get(metric, SHARE)
        mean, low, high, median = (
            _signed(value, digits) for value in (compared.difference, compared.low, compared.high, compared.median)
        )
        interval = "-" if math.isnan(compared.low) else f"{low} to {high}"
        effect = _signed(compared.rank_biserial, ".2f")
        body.append([method, TITLES[metric], mean, interval, median, effect, _p(compared.p)])
    return "\n".join([*titles, _align([head, *body], left=2)])


def _align(rows: list[list[str]], left: int) -> str:
    """Format rows with aligned columns, the first ``left`` of them to the left."""
    sides = ("left",) * left
    return tabulate(rows, tablefmt="plain", colalign=sides, colglobalalign="right", disable_numparse=True)


def _signed(value: float, digits: str) -> str:
    return "-" if math.isnan(value) else f"{value:+{digits}}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _plain_values(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(value, DIGITS)

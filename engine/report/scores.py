"""Scores of cases: the Dice that main_train.py and test_seg.py write, and tables of several measures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.metrics import mean_over_classes
from engine.evaluation.score_report import WORDS
from engine.runtime.errors import InputError
from engine.runtime.files import read_csv

DICE_CSV, SCORES_CSV = "dice.csv", "scores.csv"


class DiceScores(NamedTuple):
    """Dice of each case.

    Args:
        path: file that holds them.
        structures: names of classes and regions.
        cases: ids of the cases.
        dice: (cases, structures); NaN for a structure in neither label nor prediction.
        means: mean over the classes of each case, (cases,).
    """

    path: Path
    structures: list[str]
    cases: list[str]
    dice: NDArray[np.float64]
    means: NDArray[np.float64]

    def ranked(self) -> list[int]:
        """Return the indices of the cases that have a mean, from the worst to the best."""
        return [int(index) for index in np.argsort(self.means, kind="stable") if not np.isnan(self.means[index])]


class MeasuredScores(NamedTuple):
    """Several measures of each case and structure.

    Args:
        path: file that holds them.
        measures: names of the measures.
        rows: values of the measures by structure and case; NaN where a measure is not defined.
    """

    path: Path
    measures: list[str]
    rows: dict[str, dict[str, list[float]]]

    def to_dice(self, classes: Sequence[str]) -> DiceScores:
        """Return the Dice alone; the means are over ``classes`` as far as they were scored, or over all structures."""
        cases = list(dict.fromkeys(case for rows in self.rows.values() for case in rows))
        column, structures = self.measures.index("dice"), list(self.rows)
        absent = [math.nan] * len(self.measures)
        dice = np.array([[self.rows[name].get(case, absent)[column] for name in structures] for case in cases])
        known = [structures.index(name) for name in classes if name in structures] or range(len(structures))
        means = np.array([mean_over_classes(row[[*known]]) for row in dice])
        return DiceScores(self.path, structures, cases, dice, means)


def read_dice(path: Path) -> DiceScores:
    """Read a dice.csv: the columns are the case, classes and regions, and the mean; the last row holds the means.

    Raises:
        InputError: the file cannot be read, or is no such table.
    """
    rows = read_csv(path)
    header = list(rows[0]) if rows else []
    if len(header) < 3 or header[0] != "case" or header[-1] != "mean" or len(rows) < 2:
        raise InputError(f"{path}: holds no Dice of cases, expected the table that test_seg.py writes")
    table = np.array([[_number(row[name], path) for name in header[1:]] for row in rows[:-1]])
    return DiceScores(path, header[1:-1], [row["case"] for row in rows[:-1]], table[:, :-1], table[:, -1])


def read_scores(path: Path) -> MeasuredScores:
    """Read a scores.csv: a row per case and structure, with a column for each measure; columns of words are left out.

    Raises:
        InputError: the file cannot be read, or is no such table.
    """
    rows = read_csv(path)
    header = list(rows[0]) if rows else []
    if header[:2] != ["case", "class"] or "dice" not in header:
        raise InputError(f"{path}: holds no scores of cases, expected the table that tools/evaluate.py writes")
    numbers = [name for name in header[2:] if name not in WORDS and all(_is_number(row[name]) for row in rows)]
    measures = [name for name in header[2:] if name == "dice" or name in numbers]
    by_structure: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        cases = by_structure.setdefault(row["class"], {})
        if row["case"] in cases:
            raise InputError(f"{path}: found {row['class']} of {row['case']} twice, expected the scores of one folder")
        cases[row["case"]] = [_number(row[name], path) for name in measures]
    return MeasuredScores(path, measures, by_structure)


def _is_number(text: str) -> bool:
    try:
        return text == "" or isinstance(float(text), float)
    except ValueError:
        return False


def _number(text: str, path: Path) -> float:
    if not _is_number(text):
        raise InputError(f"{path}: found {text!r}, expected a number")
    return float(text) if text else math.nan

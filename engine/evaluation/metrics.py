"""Dice per case and class.

A class that is absent from both label and prediction has no Dice (NaN) and is left out of the means; absent from only
one of them, it scores 0. Background is not scored. A mean over cases and classes is the mean of the class means.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from engine.runtime.files import write_csv, write_text


def dice_by_class(prediction: NDArray[np.integer], label: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Compute the Dice of each foreground class, 2 |A and B| / (|A| + |B|); NaN for a class in neither map.

    Args:
        prediction, label: label maps of the same shape.
        classes: number of classes, background included.
    Shape: (X, Y, Z), (X, Y, Z) -> (classes - 1,).
    """
    confusion = np.zeros((classes, classes), np.int64)
    for true, predicted in zip(label, prediction, strict=True):  # slice by slice, to keep the int64 copies small
        pairs = true.ravel().astype(np.int64) * classes + predicted.ravel()
        confusion += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (2 * confusion.diagonal() / sizes)[1:]


def mean_over_cases(dice: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Average each class over the cases that have it, (cases, classes - 1) -> (classes - 1,); NaN if none has it."""
    table = np.asarray(dice)
    present = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(present, table, 0).sum(axis=0) / present.sum(axis=0)


def mean_over_classes(dice: NDArray[np.float64]) -> float:
    """Average over the classes that have a Dice; NaN if none has."""
    present = dice[~np.isnan(dice)]
    return float(present.mean()) if present.size else math.nan


class DiceTable:
    """Table of the Dice of each case, filled case by case; formats it as text and writes CSV and JSON.

    Args:
        classes: names of the foreground classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.cases: dict[str, NDArray[np.float64]] = {}

    def add(self, case: str, dice: NDArray[np.float64]) -> None:
        """Add the Dice of one case, (classes,)."""
        self.cases[case] = dice

    def class_means(self) -> dict[str, float]:
        """Map each class name to the mean Dice over the cases that have the class."""
        return dict(zip(self.classes, mean_over_cases(list(self.cases.values())).tolist(), strict=True))

    def means(self) -> dict[str, float]:
        """Return the mean of the class means as "mean", and the class means by name."""
        return {"mean": self.mean(), **self.class_means()}

    def mean(self) -> float:
        """Compute the mean of the class means."""
        return mean_over_classes(mean_over_cases(list(self.cases.values())))

    def _rows(self) -> list[tuple[str, NDArray[np.float64]]]:
        return [*self.cases.items(), ("mean", mean_over_cases(list(self.cases.values())))]

    def as_text(self) -> str:
        """Format an aligned table, one row per case and one for the mean; "-" for an absent class."""
        head = ["case", *self.classes, "mean"]
        body = [[name, *map(_cell, dice), _cell(mean_over_classes(dice))] for name, dice in self._rows()]
        return tabulate(
            [head, *body], tablefmt="plain", colalign=("left",), colglobalalign="right", disable_numparse=True
        )

    def write(self, folder: Path) -> None:
        """Write dice.csv, with an empty cell for an absent class, and dice.json, with null, into ``folder``."""
        rows = [[name, *map(_plain, dice), _plain(mean_over_classes(dice))] for name, dice in self._rows()]
        write_csv(folder / "dice.csv", ["case", *self.classes, "mean"], rows)
        *cases, (_, mean) = self._rows()
        report = {"mean": self._named(mean), "cases": {name: self._named(dice) for name, dice in cases}}
        write_text(folder / "dice.json", json.dumps(report, indent=2) + "\n")

    def _named(self, dice: NDArray[np.float64]) -> dict[str, float | None]:
        return {**dict(zip(self.classes, map(_plain, dice), strict=True)), "mean": _plain(mean_over_classes(dice))}


def _cell(dice: float) -> str:
    return "-" if math.isnan(dice) else f"{dice:.3f}"


def _plain(dice: float) -> float | None:
    return None if math.isnan(dice) else round(float(dice), 6)

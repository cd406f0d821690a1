"""Dice per case, class and region.

A class that is absent from both label and prediction has no Dice (NaN) and is left out of the means; absent from only
one of them, it scores 0. Background is not scored, nor is any voxel of unknown class. A mean over cases and classes is
the mean of the class means; regions are unions of classes and not part of it.
"""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from engine.data.labels import IGNORED_INDEX
from engine.runtime.errors import InputError
from engine.runtime.files import write_csv, write_text


class Overlap(NamedTuple):
    """Voxels of each structure, without those of unknown class.

    Args:
        shared: number of voxels that both maps have.
        predicted: those of the prediction.
        labelled: those of the label.
    Shape: (structures,) each.
    """

    shared: NDArray[np.int64]
    predicted: NDArray[np.int64]
    labelled: NDArray[np.int64]

    def dice(self) -> NDArray[np.float64]:
        """Compute the Dice of each structure, 2 |A and B| / (|A| + |B|); NaN for a structure in neither map."""
        with np.errstate(invalid="ignore"):
            return np.divide(2 * self.shared, self.predicted + self.labelled)


def dice_by_structure(
    prediction: NDArray[np.integer], label: NDArray[np.integer], structures: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Compute the Dice of each structure; arguments and shape as in ``count_overlap``."""
    return count_overlap(prediction, label, structures).dice()


def count_overlap(
    prediction: NDArray[np.integer], label: NDArray[np.integer], structures: Sequence[Sequence[int]]
) -> Overlap:
    """Count the voxels of each structure in two label maps.

    Args:
        prediction: label map of class indices.
        label: label map of class indices or ``IGNORED_INDEX``.
        structures: indices of the classes of which each structure consists; together all foreground classes.
    Shape: (X, Y, Z), (X, Y, Z) -> (structures,).
    """
    classes = 1 + max(max(members) for members in structures)
    confusion = np.zeros((classes, classes), np.int64)
    for true, predicted in zip(label, prediction, strict=True):  # slice by slice, to keep the int64 copies small
        known = true != IGNORED_INDEX
        pairs = true[known].astype(np.int64) * classes + predicted[known]
        confusion += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    return Overlap(
        np.array([confusion[np.ix_(members, members)].sum() for members in structures]),
        np.array([confusion[:, [*members]].sum() for members in structures]),
        np.array([confusion[[*members]].sum() for members in structures]),
    )


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
        regions: names of the regions, whose columns follow.
    """

    def __init__(self, classes: Sequence[str], regions: Sequence[str] = ()) -> None:
        self.classes, self.regions = list(classes), list(regions)
        self.cases: dict[str, NDArray[np.float64]] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a table from its dice.json.

        Raises:
            InputError: there is no such file, or it holds no table.
        """
        try:
            cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
            first = next(iter(cases.values()))
            table = cls([name for name in first if name not in ("mean", "regions")], [*first.get("regions", {})])
            for case, dice in cases.items():
                values = {**dice, **dice.get("regions", {})}
                numbers = [values[name] for name in [*table.classes, *table.regions]]
                table.add(case, np.array([math.nan if value is None else value for value in numbers], np.float64))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}), expected the Dice of some cases") from error
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
            raise InputError(f"{path}: holds no table of Dice, expected a dice.json of test_seg.py") from error
        return table

    def add(self, case: str, dice: NDArray[np.float64]) -> None:
        """Add the Dice of one case, (classes + regions,)."""
        self.cases[case] = dice

    def part(self, cases: Collection[str]) -> Self:
        """Make the table of some of the cases."""
        table = type(self)(self.classes, self.regions)
        table.cases = {name: dice for name, dice in self.cases.items() if name in cases}
        return table

    def structure_means(self) -> dict[str, float]:
        """Map the name of each class and region to the mean Dice over the cases that have it."""
        means = mean_over_cases(list(self.cases.values())).tolist()
        return dict(zip([*self.classes, *self.regions], means, strict=True))

    def means(self) -> dict[str, float]:
        """Return the mean of the class means as "mean", and those of classes and regions by name."""
        return {"mean": self.mean(), **self.structure_means()}

    def mean(self) -> float:
        """Compute the mean of the class means."""
        return self._mean_over_classes(mean_over_cases(list(self.cases.values())))

    def _mean_over_classes(self, dice: NDArray[np.float64]) -> float:
        return mean_over_classes(dice[: len(self.classes)])

    def _rows(self) -> list[tuple[str, NDArray[np.float64]]]:
        return [*self.cases.items(), ("mean", mean_over_cases(list(self.cases.values())))]

    def as_text(self) -> str:
        """Format an aligned table, one row per case and one for the mean; "-" for an absent class."""
        head = ["case", *self.classes, *self.regions, "mean"]
        body = [[name, *map(format_dice, [*dice, self._mean_over_classes(dice)])] for name, dice in self._rows()]
        return tabulate(
            [head, *body], tablefmt="plain", colalign=("left",), colglobalalign="right", disable_numparse=True
        )

    def write(self, folder: Path) -> None:
        """Write dice.csv, with an empty cell for an absent class, and dice.json, with null, into ``folder``."""
        rows = [[name, *map(plain_dice, [*dice, self._mean_over_classes(dice)])] for name, dice in self._rows()]
        write_csv(folder / "dice.csv", ["case", *self.classes, *self.regions, "mean"], rows)
        *cases, (_, mean) = self._rows()
        report = {"mean": self._named(mean), "cases": {name: self._named(dice) for name, dice in cases}}
        write_text(folder / "dice.json", json.dumps(report, indent=2) + "\n")

    def _named(self, dice: NDArray[np.float64]) -> dict[str, Any]:
        classes, regions = dice[: len(self.classes)], dice[len(self.classes) :]
        named: dict[str, Any] = dict(zip(self.classes, map(plain_dice, classes), strict=True))
        named["mean"] = plain_dice(mean_over_classes(classes))
        if self.regions:
            named["regions"] = dict(zip(self.regions, map(plain_dice, regions), strict=True))
        return named


def format_dice(dice: float) -> str:
    """Format a Dice for a printed table; "-" if there is none."""
    return "-" if math.isnan(dice) else f"{dice:.3f}"


def plain_dice(dice: float) -> float | None:
    """Round a Dice for a file; None if there is none."""
    return None if math.isnan(dice) else round(float(dice), 6)

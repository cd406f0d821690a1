"""Experiments as tables: the arms of ``experiments/<name>/arms.toml``, with the flags of a scale."""

import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCALES: dict[str, dict[str, str]] = tomllib.loads((FOLDER / "scales.toml").read_text())
NAMES = sorted(table.parent.name for table in FOLDER.glob("*/arms.toml"))


@dataclass(frozen=True)
class Experiment:
    """One question, answered by training every arm with every seed.

    Args:
        name: name of its folder.
        comparisons: (arm, reference): the pairs of arms that are compared.
        arms: flags of main_train.py by arm, complete except for data, seed, device and output.
        measures: further measurements of each run (``experiments.measures``).
        dataset: description of the dataset, unless another one is given.
    """

    name: str
    comparisons: list[tuple[str, str]]
    arms: dict[str, list[str]]
    measures: tuple[str, ...]
    dataset: str


def read_experiment(name: str, scale: str) -> Experiment:
    """Read an experiment's table.

    An arm's own flags come after those of the scale, and override them. Every arm is compared with ``reference``, and
    those in the table ``also_with`` with another arm as well. ``dataset`` overrides the description of the scale.
    """
    table: dict[str, Any] = tomllib.loads((FOLDER / name / "arms.toml").read_text())
    common = [*shlex.split(SCALES[scale]["flags"]), *shlex.split(table.get("flags", {}).get(scale, ""))]
    arms = {arm: [*common, *own] for arm, flags in table["arms"].items() if (own := _own_flags(flags, scale))}
    measures = tuple(table.get("measures", ()))
    comparisons = [(arm, table["reference"]) for arm in arms if arm != table["reference"]]
    comparisons += [(arm, other) for arm, other in table.get("also_with", {}).items() if {arm, other} <= arms.keys()]
    return Experiment(name, comparisons, arms, measures, table.get("dataset", SCALES[scale]["dataset"]))


def _own_flags(flags: str | dict[str, str], scale: str) -> list[str]:
    """Return an arm's flags: one text for all scales, or one by scale; none for an arm that a scale leaves out."""
    return shlex.split(flags if isinstance(flags, str) else flags.get(scale, ""))

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
        references: the arm that each arm is compared with, by arm; the first one has none.
        arms: flags of main_train.py by arm, complete except for data, seed, device and output.
        measures: further measurements of each run (``experiments.measures``).
        dataset: default description of the dataset.
    """

    name: str
    references: dict[str, str]
    arms: dict[str, list[str]]
    measures: tuple[str, ...]
    dataset: str


def read_experiment(name: str, scale: str) -> Experiment:
    """Read an experiment's table.

    An arm's own flags come after those of the scale, and override them. Arms are compared with ``reference``, unless
    ``references`` names another one.
    """
    table: dict[str, Any] = tomllib.loads((FOLDER / name / "arms.toml").read_text())
    common = [*shlex.split(SCALES[scale]["flags"]), *shlex.split(table["flags"].get(scale, ""))]
    arms = {arm: [*common, *own] for arm, flags in table["arms"].items() if (own := _own_flags(flags, scale))}
    measures = tuple(table.get("measures", ()))
    references = {arm: table["reference"] for arm in arms if arm != table["reference"]} | table.get("references", {})
    return Experiment(name, references, arms, measures, SCALES[scale]["dataset"])


def _own_flags(flags: str | dict[str, str], scale: str) -> list[str]:
    """Return an arm's flags: one text for all scales, or one by scale; none for an arm that a scale leaves out."""
    return shlex.split(flags if isinstance(flags, str) else flags.get(scale, ""))

"""Results of an experiment: CSV tables of all its runs, and runs.json with what made them.

A run is finished when its rows are in results.csv, which is written last. Every row carries a digest of the code that
trained it; rows of other code, arms or data are refused.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.data.datasets import find_description
from engine.runtime.errors import InputError
from engine.runtime.files import digest_file, read_csv, write_csv, write_text

ROOT = Path(__file__).parents[1]
RESULTS, RUNS = "results.csv", "runs.json"
HEAD = ("arm", "seed", "code")  # columns of every table
COLUMNS = ("case", "class", "dice")  # further columns of results.csv
# With the version of PyTorch, what decides the rows of a run; documents, tests and the arms' tables may change.
TRAINING_CODE = (
    *("main_train.py", "load_datasets_transforms.py", "engine", "networks", "experiments/measures.py"),
    "recipes/best.args",  # an arm may have --recipe best
)
Row = dict[str, str]


class Results:
    """Tables of an experiment in a folder, to which runs are added.

    Args:
        folder: folder of the tables.
        identity: what all runs have in common; saved tables with another identity are refused.
        arms: names of the arms, in order.
    Raises:
        InputError: the folder holds results of another experiment, of other arms, code or data, rows that runs.json
            does not know, or damaged files.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], arms: Sequence[str]) -> None:
        self.folder, self.identity, self.arms = folder, identity, list(arms)
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[Row]] = {}
        if (folder / RUNS).exists():
            self.runs = self._read_runs(folder / RUNS)
        if (folder / RESULTS).exists():
            for row in read_table(folder / RESULTS, arms, identity["code"]):
                self.rows.setdefault(run_name(row["arm"], row["seed"]), []).append(row)
        for path in sorted(folder.glob("*.csv")):  # here and not when a run is added, which would then be lost
            if path.name != RESULTS:
                read_table(path, arms, identity["code"])
        if unknown := sorted(self.rows.keys() - self.runs.keys()):
            raise InputError(f"--results: {folder / RESULTS} holds rows of {unknown[0]}, which {RUNS} does not")

    def _read_runs(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            saved = json.loads(path.read_text())
            runs = {name: {**run, "seconds": float(run["seconds"])} for name, run in saved["runs"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"--results: {path} is damaged, expected what experiments.run wrote") from error
        for key, value in self.identity.items():
            if saved.get(key) != value:
                found = f"other {key}{_first_difference(saved.get(key), value)}"
                raise InputError(
                    f"--results: {self.folder} holds runs of {found}, expected the same, or another folder"
                )
        return runs

    def is_finished(self, arm: str, seed: int) -> bool:
        """Check whether a run's rows are there."""
        return run_name(arm, seed) in self.rows

    def note(self, arm: str, seed: int, seconds: float, **facts: Any) -> None:
        """Write facts about a run, finished or not, to runs.json; the seconds of its parts add up."""
        run = self.runs.setdefault(run_name(arm, seed), {"seconds": 0.0})
        run.update(facts, seconds=round(run["seconds"] + seconds, 1))
        write_text(self.folder / RUNS, json.dumps({**self.identity, "runs": self.runs}, indent=1) + "\n")

    def add(
        self, arm: str, seed: int, dice: Iterable[tuple[str, str, float | None]], tables: dict[str, list[Row]]
    ) -> None:
        """Add a finished run.

        Args:
            arm, seed: the run.
            dice: (case, class, Dice) of every validation case and class; None for a class that is absent.
            tables: rows of further tables by name.
        """
        head = dict(zip(HEAD, (arm, str(seed), self.identity["code"]), strict=True))
        for name, rows in tables.items():
            path = self.folder / f"{name}.csv"
            saved = read_table(path, self.arms, self.identity["code"]) if path.exists() else []
            kept = [row for row in saved if (row["arm"], row["seed"]) != (arm, str(seed))]
            self._write(path, [*kept, *({**head, **row} for row in rows)])
        self.rows[run_name(arm, seed)] = [
            {**head, "case": case, "class": label, "dice": "" if value is None else f"{value:.6f}"}
            for case, label, value in dice
        ]
        self._write(self.folder / RESULTS, [row for rows in self.rows.values() for row in rows])

    def _write(self, path: Path, rows: list[Row]) -> None:
        """Write rows in the order of seeds and arms; nothing if there are none, as for networks without masks."""
        if rows:
            rows.sort(key=lambda row: (int(row["seed"]), self.arms.index(row["arm"])))
            write_csv(path, list(rows[0]), [list(row.values()) for row in rows])


def run_name(arm: str, seed: int | str) -> str:
    """Name a run in runs.json."""
    return f"{arm}, seed {seed}"


def read_table(path: Path, arms: Sequence[str], code: str | None = None) -> list[Row]:
    """Read a table of an experiment.

    Args:
        path: CSV file.
        arms: names of the experiment's arms.
        code: digest that every row must carry; None for any, but the same in all rows.
    Raises:
        InputError: the file is no such table, is not whole, or has rows of other arms or code.
    """
    rows = read_csv(path)
    if rows and not set(rows[0]) >= {*HEAD, *(COLUMNS if path.name == RESULTS else ())}:
        raise InputError(f"--results: {path} lacks columns, expected what experiments.run wrote")
    codes, found = {row["code"] for row in rows}, {row["arm"] for row in rows}
    if unknown := sorted(found - set(arms)):
        raise InputError(f"--results: {path} holds rows of {unknown[0]}, expected arms of this experiment")
    expected = code or min(codes, default="")
    if other := sorted(codes - {expected}):
        raise InputError(f"--results: {path} holds rows of other code ({other[0]}), expected {expected} in every row")
    if not rows or not all(re.fullmatch(r"\d+", row["seed"] or "") for row in rows):
        raise InputError(f"--results: {path} is damaged, expected rows, each with the seed of its run")
    if path.name == RESULTS:
        _check_scores(path, rows)
    return rows


def _check_scores(path: Path, rows: list[Row]) -> None:
    """Make sure that every run has one valid Dice, or an empty field, for each case and class."""
    runs: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if not re.fullmatch(r"0\.\d+|1\.0+|", row["dice"] or ""):
            raise InputError(f"--results: {path} holds the Dice {row['dice']!r}, expected numbers from 0 to 1")
        runs.setdefault(run_name(row["arm"], row["seed"]), []).append((row["case"], row["class"]))
    every = {cell for cells in runs.values() for cell in cells}
    for name, cells in runs.items():
        if len(cells) != len(every) or set(cells) != every:
            found, expected = f"{len(cells)} rows of {name}", f"one for each of {len(every)} cases and classes"
            raise InputError(f"--results: {path} holds {found}, expected {expected}")


def digest_code() -> str:
    """Hash the code that decides the result of a run, and the version of PyTorch."""
    parts = [ROOT / name for name in TRAINING_CODE]
    files = [file for part in parts for file in (sorted(part.rglob("*.py")) if part.is_dir() else [part])]
    lines = [f"{file.relative_to(ROOT)} {digest_file(str(file))}" for file in files]
    return digest_text("\n".join([f"torch {version('torch')}", *lines]))


def digest_files(flags: Iterable[str]) -> dict[str, str]:
    """Hash the files of the repository that are named by flags, such as weights to start from, or a split."""
    return {flag: digest_file(str(ROOT / flag)) for flag in sorted(set(flags)) if (ROOT / flag).is_file()}


def digest_data(root: Path, dataset: str) -> str:
    """Hash names and sizes of the training and validation files, and the description of the dataset.

    Raises:
        InputError: there are none.
    """
    parts = ("imagesTr", "labelsTr", "imagesVal", "labelsVal", "imagesVa", "labelsVa")
    files = [file for part in parts for file in sorted((root / part).glob("*"))]
    if not files:
        raise InputError(f"--root: found no files in {root / 'imagesTr'}, expected a dataset folder")
    sizes = {str(file.relative_to(root)): file.stat().st_size for file in files}
    return digest_text(json.dumps([sizes, find_description(dataset).to_json()], sort_keys=True))


def digest_text(text: str) -> str:
    """Hash a text."""
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _first_difference(saved: Any, value: Any) -> str:
    """Name where two values of an identity differ, in brackets."""
    if isinstance(saved, dict) and isinstance(value, dict):
        return f" ({next(name for name in {**saved, **value} if saved.get(name) != value.get(name))})"
    return f" ({saved})"

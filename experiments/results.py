"""Results of an experiment: CSV tables of all its runs, and runs.json with what made them.

A run is finished when its rows are in results.csv, which is written last. Rows carry a digest of the code that trained
them; rows of other code, arms or data are refused.
"""

import csv
import hashlib
import io
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engine.runtime.errors import InputError
from engine.runtime.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS, RUNS = "results.csv", "runs.json"
COLUMNS = ("arm", "seed", "case", "class", "dice", "code")
# What decides the result of a run; documents, tests and the experiments themselves may change.
TRAINING_CODE = ("main_train.py", "load_datasets_transforms.py", "engine", "networks")
Row = dict[str, str]


class Results:
    """Tables of an experiment in a folder, to which runs are added.

    Args:
        folder: folder of the tables; made if it does not exist.
        identity: what all runs have in common; saved tables with another identity are refused.
        arms: names of the arms, in order.
    Raises:
        InputError: the folder holds results of another experiment, of other arms, code or data, or rows that
            runs.json does not know.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], arms: Sequence[str]) -> None:
        self.folder, self.identity, self.arms = folder, identity, list(arms)
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[Row]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RUNS).exists():
            self.runs = self._check_identity(json.loads((folder / RUNS).read_text()))
        if (folder / RESULTS).exists():
            for row in read_rows(folder / RESULTS):
                self.rows.setdefault(run_name(row["arm"], int(row["seed"])), []).append(row)
            self._check_rows()

    def _check_identity(self, saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
        for key, value in self.identity.items():
            if saved.get(key) != value:
                found = f"{key}{_first_difference(saved.get(key), value)}"
                raise InputError(
                    f"--results: {self.folder} holds runs with another {found}, expected the same, or another folder"
                )
        return saved["runs"]

    def _check_rows(self) -> None:
        codes = {row["code"] for rows in self.rows.values() for row in rows}
        if unknown := sorted(self.rows.keys() - self.runs.keys()):
            raise InputError(f"--results: {self.folder / RESULTS} holds rows of {unknown[0]}, which {RUNS} does not")
        if other := sorted(codes - {self.identity["code"]}):
            raise InputError(
                f"--results: {self.folder / RESULTS} holds rows of other code ({other[0]}), expected "
                f"{self.identity['code']} in every row"
            )

    def is_finished(self, arm: str, seed: int) -> bool:
        """Check whether a run's rows are there."""
        return run_name(arm, seed) in self.rows

    def note(self, arm: str, seed: int, **facts: Any) -> None:
        """Write facts about a run, finished or not, to runs.json; seconds add up over its parts."""
        run = self.runs.setdefault(run_name(arm, seed), {"seconds": 0.0})
        facts["seconds"] = round(run["seconds"] + facts.get("seconds", 0), 1)
        run.update(facts)
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
        head = {"arm": arm, "seed": str(seed)}
        for name, rows in tables.items():
            path = self.folder / f"{name}.csv"
            kept = (
                [row for row in read_rows(path) if (row["arm"], row["seed"]) != (arm, str(seed))]
                if path.exists()
                else []
            )
            if kept or rows:  # some networks have nothing to measure
                self._write(path, [*kept, *({**head, **row} for row in rows)])
        self.rows[run_name(arm, seed)] = [
            {
                **head,
                "case": case,
                "class": label,
                "dice": "" if value is None else f"{value:.6f}",
                "code": self.identity["code"],
            }
            for case, label, value in dice
        ]
        self._write(self.folder / RESULTS, [row for rows in self.rows.values() for row in rows])

    def _write(self, path: Path, rows: list[Row]) -> None:
        """Write rows in the order of seeds and arms."""
        rows = sorted(rows, key=lambda row: (int(row["seed"]), self.arms.index(row["arm"])))
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())


def run_name(arm: str, seed: int) -> str:
    """Name a run in runs.json."""
    return f"{arm}, seed {seed}"


def read_rows(path: Path) -> list[Row]:
    """Read a CSV table."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def digest_code() -> str:
    """Hash the code that decides the result of a run."""
    whole = hashlib.blake2b(digest_size=4)
    for name in TRAINING_CODE:
        files = sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name]
        for file in files:
            whole.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return whole.hexdigest()


def digest_data(root: Path) -> str:
    """Hash names and sizes of the training and validation files.

    Raises:
        InputError: there are none.
    """
    whole = hashlib.blake2b(digest_size=4)
    files = [
        file for part in ("imagesTr", "labelsTr", "imagesVal", "labelsVal") for file in sorted((root / part).glob("*"))
    ]
    if not files:
        raise InputError(f"--root: found no files in {root / 'imagesTr'}, expected a dataset folder")
    for file in files:
        whole.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
    return whole.hexdigest()


def find_commit() -> str:
    """Return the commit of the working tree, with "-dirty" if files differ from it, or "unknown" outside git."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _first_difference(saved: Any, value: Any) -> str:
    if isinstance(saved, dict) and isinstance(value, dict):
        names = [name for name in {**saved, **value} if saved.get(name) != value.get(name)]
        return f" ({names[0]})"
    return f" ({saved})" if isinstance(saved, str) else ""

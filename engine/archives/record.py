"""Record of the cases that are finished, by which an interrupted command goes on."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.runtime.arguments import format_value
from engine.runtime.errors import InputError
from engine.runtime.files import write_text
from networks.whole_files import PARTIAL

NAME = ".prepared.jsonl"


class Record:
    """File in a dataset folder: a line on what is prepared, and one for each case that is finished.

    Args:
        root: the dataset folder.
        purpose: what is prepared from what: JSON values by the name of their flag.
    """

    def __init__(self, root: Path, purpose: Mapping[str, Any]) -> None:
        self.root, self.path = root, root / NAME
        self.purpose = json.loads(json.dumps(purpose))
        self.finished: dict[str, dict[str, Any]] = {}

    def read(self) -> None:
        """Read the record of an earlier call, if there is one, and keep its cases whose files are all there.

        Raises:
            InputError: the folder has cases of something else, or no record and other files.
        """
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise InputError(f"--output: found the file {self.root}, expected a folder")
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if strays := sorted({*os.listdir(self.root)} - {f".{NAME}{PARTIAL}"}):
                expected = "expected an empty or absent folder, or one that this command has begun"
                raise InputError(f"--output: found {strays[0]} in {self.root}, {expected}") from None
            return
        purpose, *cases = [json.loads(line) for line in text.splitlines() if _is_json(line)] or [{}]
        if not cases and not _has_files(self.root):
            return  # it stopped before its first case, perhaps for a flag that is another one now
        for flag, value in self.purpose.items():
            if purpose.get(flag) != value:
                found = f"found {self.root}, prepared with {flag} {format_value(purpose.get(flag))}"
                raise InputError(f"--output: {found}, expected {format_value(value)}, or another folder")
        self.finished = {entry["case"]: entry for entry in cases if self._is_whole(entry["files"])}

    def _is_whole(self, files: Mapping[str, int]) -> bool:
        try:
            return all(os.path.getsize(self.root / name) == size for name, size in files.items())
        except OSError:
            return False

    def begin(self) -> None:
        """Write the record anew, with the cases that are finished."""
        lines = [self.purpose, *self.finished.values()]
        write_text(self.path, "".join(f"{json.dumps(line)}\n" for line in lines))

    def add(self, case: str, files: Iterable[str], changes: Mapping[str, int]) -> None:
        """Add a finished case by its key, with its files, and the number of each change to it."""
        sizes = {name: os.path.getsize(self.root / name) for name in files}
        self.finished[case] = {"case": case, "files": sizes, "changes": dict(changes)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(self.finished[case])}\n")


def _has_files(folder: Path) -> bool:
    """Check whether a folder, or one below it, has a file that is not hidden."""
    return any(not name.startswith(".") for _, _, names in os.walk(folder) for name in names)


def _is_json(line: str) -> bool:
    """Check a line, of which a kill may have left only the beginning."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True

"""Splits: which cases are for training, validation and test. ``engine.data.split_file`` has their JSON form."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from engine.runtime.arguments import PARTS
from engine.runtime.errors import InputError

TRAINING, VALIDATION, TEST = PARTS
SHOWN = 12  # characters of a hash in messages

Ids = tuple[str, ...]
Fold = Mapping[str, Sequence[str]]  # "training", "validation" -> ids


@dataclass(frozen=True)
class Split:
    """One fold of a split.

    Args:
        name: name of the split.
        digest: hash of the ids of all folds.
        folds: number of folds.
        fold: number of this one, from 0; None if none was chosen.
        parts: ids of each part, sorted; without a fold only those of the test part.
    """

    name: str
    digest: str
    folds: int
    fold: int | None
    parts: Mapping[str, Ids]

    @classmethod
    def of_folders(cls, training: Sequence[str], validation: Sequence[str]) -> Self:
        """Describe the split that the folders of a dataset are."""
        parts = {TRAINING: tuple(training), VALIDATION: tuple(validation)}
        return cls("folders", hash_ids([parts]), 1, 0, parts)

    def ids(self, part: str) -> Ids:
        """Return the ids of a part.

        Raises:
            InputError: the part depends on a fold and none was chosen, or there is no such part.
        """
        if part not in self.parts and part != TEST:
            raise InputError(f"--fold: found none, expected 0 to {self.folds - 1}, a fold of the split {self.name!r}")
        if part not in self.parts:
            raise InputError(
                f"--part: found test, expected training or validation, the parts of the split {self.name!r}"
            )
        return self.parts[part]

    def part_to_predict(self, part: str | None) -> str:
        """Return the part to predict and score: the given one, or else the test part, if there is one."""
        return part or (TEST if TEST in self.parts else VALIDATION)

    def __str__(self) -> str:
        """Describe the split in a line: name, fold, hash, and number of cases in each part."""
        fold = f", fold {self.fold} of {self.folds}" if self.folds > 1 and self.fold is not None else ""
        counts = ", ".join(f"{len(ids)} {part}" for part, ids in self.parts.items())
        return f"{self.name}{fold}, hash {self.digest[:SHOWN]}: {counts}"

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain values, for checkpoints."""
        parts = {part: list(ids) for part, ids in self.parts.items()}
        return {"name": self.name, "hash": self.digest, "folds": self.folds, "fold": self.fold, **parts}


def hash_ids(folds: Sequence[Fold], test: Sequence[str] = ()) -> str:
    """Hash the ids of a split: the SHA-256 of a canonical JSON text, in hexadecimal digits.

    The text is {"folds":[{"training":[...],"validation":[...]},...],"test":[...]} in ASCII, without spaces, the ids of
    each part sorted, the test empty if there is none; so the order of ids, the name and the layout of a file have no
    part in it, the order of the folds has.
    """
    values = {
        "folds": [{part: sorted(fold[part]) for part in (TRAINING, VALIDATION)} for fold in folds],
        TEST: sorted(test),
    }
    return hashlib.sha256(json.dumps(values, separators=(",", ":"), sort_keys=True).encode()).hexdigest()

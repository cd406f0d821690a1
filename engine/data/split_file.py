"""Split files: reading, checking and writing.

A split file is JSON:

    {"name": "...", "provenance": "...", "seed": 0, "folds": [{"training": [ids], "validation": [ids]}, ...],
     "test": [ids], "hash": "..."}

Only the folds are required. The hash is that of ``hash_ids``; a file without one is accepted, a file with the hash of
other ids is refused. nnU-Net's splits_final.json, a list of {"train": [ids], "val": [ids]}, is read as well.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.datasets import refuse_repetitions
from engine.data.splits import TEST, TRAINING, VALIDATION, Fold, Ids, Split, hash_ids
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.files import write_text
from engine.runtime.wording import list_some

NNUNET = {"train": TRAINING, "val": VALIDATION}  # names of the parts in splits_final.json
FIELDS = ("name", "provenance", "seed", "folds", TEST, "hash")
LONGEST_SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class SplitFile:
    """Content of a split file.

    Args:
        name: name of the split.
        provenance: where the ids and their division are from.
        seed: seed of the division, if it was random.
        folds: ids for training and validation, by fold.
        test: ids for the test, the same in all folds; none if there is no such part.
    """

    name: str
    provenance: str
    seed: int | None
    folds: tuple[Fold, ...]
    test: Ids = ()

    @property
    def digest(self) -> str:
        """Hash of the ids."""
        return hash_ids(self.folds, self.test)

    def choose(self, fold: int | None) -> Split:
        """Return a fold; a file with several has only its test part if none is chosen.

        Raises:
            InputError: there is no such fold.
        """
        if fold is not None and fold >= len(self.folds):
            expected = f"0 to {len(self.folds) - 1}" if len(self.folds) > 1 else "0"
            raise InputError(f"--fold: found {fold}, expected {expected}, as in the split {self.name!r}")
        number = 0 if len(self.folds) == 1 else fold
        parts = {} if number is None else dict(self.folds[number])
        if self.test:
            parts[TEST] = self.test
        sorted_parts = {part: tuple(sorted(ids)) for part, ids in parts.items()}
        return Split(self.name, self.digest, len(self.folds), number, sorted_parts)

    def to_text(self) -> str:
        """Format as JSON, a line per part."""
        folds = ",\n".join(
            f'    {{"{TRAINING}": {json.dumps(fold[TRAINING])},\n     "{VALIDATION}": {json.dumps(fold[VALIDATION])}}}'
            for fold in self.folds
        )
        fields = {
            "name": json.dumps(self.name),
            "provenance": json.dumps(self.provenance),
            "seed": json.dumps(self.seed),
            "folds": f"[\n{folds}\n  ]",
            **({TEST: json.dumps(self.test)} if self.test else {}),
            "hash": json.dumps(self.digest),
        }
        return "{\n" + ",\n".join(f'  "{name}": {value}' for name, value in fields.items()) + "\n}\n"


def find_split(path: str | None, fold: int | None) -> Split | None:
    """Find the split for ``--split`` and ``--fold``; None without them.

    Raises:
        InputError: a fold without a split, no such fold, or as ``read_split_file``.
    """
    if path is not None:
        return read_split_file(Path(path)).choose(fold)
    if fold is not None:
        raise InputError(f"--fold: found {fold} without --split, expected both or neither")
    return None


def read_split_file(path: Path) -> SplitFile:
    """Read a split file, or nnU-Net's splits_final.json.

    Raises:
        InputError: one line per problem: the file cannot be read, is no JSON, has unknown fields or values of another
            type, empty parts, an id twice or in two parts of a fold, or the hash of other ids.
    """
    source = f"--split: {path}"
    try:
        values = json.loads(path.read_bytes(), object_pairs_hook=refuse_repetitions)
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}), expected a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not JSON ({error}), expected a split file") from error
    if isinstance(values, list):
        values = {"provenance": "nnU-Net", "folds": [_translate(fold) for fold in values]}
    raise_problems([f"{source}: {problem}" for problem in _find_problems(values)])
    folds = tuple({part: tuple(fold[part]) for part in (TRAINING, VALIDATION)} for fold in values["folds"])
    name, provenance, test = values.get("name", path.stem), values.get("provenance", ""), tuple(values.get(TEST, ()))
    made = SplitFile(name, provenance, values.get("seed"), folds, test)
    if values.get("hash") not in (None, made.digest):
        expected = f"{made.digest}, that of its ids (if they were changed on purpose, write this hash or none)"
        raise InputError(f"{source}: found the hash {values['hash'][:LONGEST_SHOWN]}, expected {expected}")
    return made


def _translate(fold: Any) -> Any:
    """Give the parts of a fold of nnU-Net our names."""
    return {NNUNET.get(name, name): ids for name, ids in fold.items()} if isinstance(fold, dict) else fold


def _find_problems(values: Any) -> Iterator[str]:
    """Yield a line for each problem of a file's content."""
    if not isinstance(values, dict):
        yield f"found no object, expected one with the fields {', '.join(FIELDS)}"
        return
    if unknown := values.keys() - set(FIELDS):
        yield f"found the field {', '.join(map(json.dumps, sorted(unknown)))}, expected only {', '.join(FIELDS)}"
    for name in ("name", "provenance", "hash"):
        if name in values and not _is_text(values[name]):
            yield f"{name}: found {json.dumps(values[name])[:LONGEST_SHOWN]}, expected some text"
    if type(values.get("seed")) not in (int, type(None)):
        yield f"seed: found {json.dumps(values['seed'])[:LONGEST_SHOWN]}, expected a whole number or null"
    folds = values.get("folds")
    if not isinstance(folds, list) or not folds:
        yield f'folds: expected a list of {{"{TRAINING}": [ids], "{VALIDATION}": [ids]}}, at least one'
        return
    problems = list(_find_bad_ids(values[TEST])) if TEST in values else []
    yield from (f"{TEST}: {problem}" for problem in problems)
    test = [] if problems else values.get(TEST, [])
    for number, fold in enumerate(folds):
        yield from (f"fold {number}: {problem}" for problem in _find_bad_parts(fold, test))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and value != ""


def _find_bad_parts(fold: Any, test: Sequence[str]) -> Iterator[str]:
    """Yield a line for each problem of a fold, and for ids that two of its parts or one and the test share."""
    if not isinstance(fold, dict) or fold.keys() != {TRAINING, VALIDATION}:
        found = ", ".join(map(json.dumps, fold)) if isinstance(fold, dict) else "no object"
        yield f"found {found or 'nothing'}, expected exactly the parts {TRAINING} and {VALIDATION}"
        return
    problems = [f"{part}: {problem}" for part, ids in fold.items() for problem in _find_bad_ids(ids)]
    yield from problems
    if problems:
        return
    parts = {**fold, TEST: test}
    for first, second in ((TRAINING, VALIDATION), (TRAINING, TEST), (VALIDATION, TEST)):
        if shared := sorted(set(parts[first]) & set(parts[second])):
            yield f"found {list_some(shared)} in {first} and {second}, expected no case in two parts"


def _find_bad_ids(ids: Any) -> Iterator[str]:
    """Yield a line for each problem of the ids of a part."""
    if not isinstance(ids, list) or not ids or not all(isinstance(name, str) and name for name in ids):
        yield "expected a list of ids, at least one"
    elif twice := sorted(name for name, count in Counter(ids).items() if count > 1):
        yield f"found {list_some(twice)} twice, expected each id once"


def write_split_file(path: Path, content: SplitFile) -> None:
    """Write a split file atomically; one with the same content is left as it is.

    Raises:
        InputError: there is another file at the path.
    """
    text = content.to_text()
    try:
        found = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        write_text(path, text)
        return
    except OSError as error:
        raise InputError(f"--output: {path} cannot be written ({error.strerror}), expected a file") from error
    if found != text:
        raise InputError(f"--output: found another {path}, which is kept, expected a new name")

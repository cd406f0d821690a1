"""Tables beside the volumes: TotalSegmentator's split, and the scanners of AMOS."""

import csv
import io
from collections.abc import Container, Iterator, Mapping, Sequence

from engine.archives.sources import Source
from engine.data.division import divide
from engine.data.split_file import SplitFile
from engine.data.splits import TRAINING, VALIDATION
from engine.runtime.errors import InputError
from engine.runtime.wording import count_of

META = "meta.csv"  # of TotalSegmentator
META_SPLITS = ("train", "val", "test")
SHARE, SEED = 0.1, 0  # of the training cases for validation, if a table has none
SCANNERS = "labeled_data_meta_0000_0599.csv"  # of AMOS, in or beside the archive
CASE, MODEL = "amos_id", "Manufacturer's Model Name"  # its columns


def read_split(source: Source) -> dict[str, list[str]]:
    """Read the ids by train, val and test from TotalSegmentator's meta.csv; none without such a file.

    Raises:
        InputError: the file has other columns or values.
    """
    paths = [name for name in source.members if name.rpartition("/")[2] == META]
    if not paths:
        return {}
    rows = csv.DictReader(io.StringIO(source.read(paths[0]).decode("utf-8-sig", errors="replace")), delimiter=";")
    split: dict[str, list[str]] = {part: [] for part in META_SPLITS}
    for row in rows:
        if row.get("split") not in META_SPLITS or not row.get("image_id"):
            expected = 'columns image_id and split, with train, val or test, separated by ";"'
            raise InputError(f"{source.members[paths[0]]}: found the row {dict(row)}, expected {expected}")
        split[row["split"]].append(row["image_id"])
    return split


def make_split(
    table: Mapping[str, Sequence[str]], cases: Container[str], name: str, title: str
) -> tuple[SplitFile | None, list[str]]:
    """Make a split of one fold from a table: a tenth of the training cases validate if it has none for that (MRI).

    Args:
        table: ids by train, val and test.
        cases: ids of the prepared cases.
        name: name of the split.
        title: title of the archive.
    Returns: the split, or None if there are too few cases for it, and lines to say.
    """
    training, validation, test = ([case for case in table.get(part, ()) if case in cases] for part in META_SPLITS)
    if len(training) < (1 if validation else 2):
        return None, []
    provenance, fold = f"{META} of {title}", {TRAINING: training, VALIDATION: validation}
    if validation:
        return SplitFile(name, provenance, None, (fold,), tuple(test)), []
    folds, _ = divide(training, SEED, validation=max(SHARE, 1 / len(training)))
    number = count_of(len(folds[0][VALIDATION]), "training case")
    note = f"{META} has no cases for validation: {number} of its {len(training)} by seed {SEED}"
    return SplitFile(name, f"{provenance}; {note}", SEED, folds, tuple(test)), [note]


def select_scanner(source: Source, cases: Sequence[str], scanner: str) -> set[str]:
    """Select the cases of AMOS from one scanner.

    Args:
        source: the archive; the table of its scanners lies in it or beside it.
        cases: ids of the cases, which end with their number.
        scanner: part of the scanner's name, in capitals or not.
    Raises:
        InputError: the table is missing or has other columns, or no case is left.
    """
    models = dict(_read_scanners(source))
    model_of = {case: models.get(int(case.rpartition("_")[2]), "unknown") for case in cases}
    selected = {case for case, model in model_of.items() if scanner.lower() in model.lower()}
    if not selected:
        raise InputError(f"--scanner: found {scanner}, expected part of {', '.join(sorted(set(model_of.values())))}")
    return selected


def _read_scanners(source: Source) -> Iterator[tuple[int, str]]:
    """Yield the number of each case of AMOS with the name of its scanner."""
    inside = [name for name in source.members if name.rpartition("/")[2] == SCANNERS]
    beside = source.path.absolute().parent / SCANNERS
    if not inside and not beside.is_file():
        raise InputError(f"--scanner: found no {SCANNERS} in or beside {source.path}, expected it from Zenodo's page")
    content = source.read(inside[0]) if inside else beside.read_bytes()
    for row in csv.DictReader(io.StringIO(content.decode("utf-8-sig", errors="replace"))):
        try:
            yield int(row[CASE]), row[MODEL] or "unknown"
        except (KeyError, TypeError, ValueError):
            expected = f"the columns {CASE}, with whole numbers, and {MODEL}"
            raise InputError(f"{SCANNERS}: found the row {dict(row)}, expected {expected}") from None

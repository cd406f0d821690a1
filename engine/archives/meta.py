"""Tables beside the volumes: TotalSegmentator's split, and the scanners of AMOS."""

import csv
import io
from collections.abc import Iterator, Sequence

from engine.archives.sources import Source
from engine.runtime.errors import InputError

META = "meta.csv"  # of TotalSegmentator
META_SPLITS = ("train", "val", "test")
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

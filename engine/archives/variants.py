"""Flags of single kinds, and the kind that results from them."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.archives.kinds import Kind
from engine.archives.table import BRATS_YEARS, KINDS, KITS21_LABELS
from engine.runtime.errors import raise_problems

BEFORE_2023 = r"(?:.*/)?[^/]+_t1ce\.nii(?:\.gz)?"  # of BraTS


@dataclass(frozen=True)
class Options:
    """Flags that only some kinds have; None where they are not given.

    Args:
        cases: number of cases of KiTS21: 300, or the first 210.
        labels: annotation of KiTS21: MAJ, AND or OR.
        scanner: part of the scanner's name, for AMOS.
        classes: classes of TotalSegmentator, in the order of their values.
        year: year of BraTS.
    """

    cases: int | None = None
    labels: str | None = None
    scanner: str | None = None
    classes: tuple[str, ...] | None = None
    year: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the flags that are given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def choose_variant(name: str, options: Options, names: Iterable[str]) -> Kind:
    """Return a kind as the flags change it.

    Args:
        name: name of the kind.
        options: the flags.
        names: names of the files in the archive.
    Raises:
        InputError: a flag that this kind does not have, or BraTS without its year.
    """
    kind = KINDS[name]
    raise_problems(
        [
            f"--{flag}: found with --kind {name}, expected only with "
            f"{' or '.join(other for other in KINDS if flag in KINDS[other].options)}"
            for flag in options.given()
            if flag not in kind.options
        ]
    )
    if options.labels is not None:
        layout = kind.layout.replace("MAJ", options.labels)
        kind = replace(kind, labels=(KITS21_LABELS.format(options.labels),), layout=layout)
    if options.cases is not None:
        kind = replace(kind, ids=frozenset(sorted(kind.ids)[: options.cases]), numbers=range(options.cases))
    if options.cases == len(KINDS["kits19"].ids):
        kind = replace(kind, split=KINDS["kits19"].split)
    if options.scanner is not None:
        kind = replace(kind, split="")  # the committed one is of all scanners
    return replace(kind, **BRATS_YEARS[_find_year(options, names)]) if name == "brats" else kind


def _find_year(options: Options, names: Iterable[str]) -> str:
    """Return the year whose labels BraTS has: up to 2021 the names of the files tell it."""
    old = any(re.fullmatch(BEFORE_2023, name) for name in names)
    if old and options.year in (None, "2021"):
        return "2021"
    problems = []
    if old:
        problems = [f"--year: found {options.year}, expected 2021: files end with _t1ce, as until then"]
    elif options.year is None:
        problems = [
            "--year: found none, expected 2023 or 2024: files have the same names in both years, but the value 4 means "
            "nothing in 2023, and the resection cavity in 2024"
        ]
    elif options.year == "2021":
        problems = ["--year: found 2021, expected 2023 or 2024: no file ends with _t1ce, as until 2021"]
    raise_problems(problems)
    return str(options.year)

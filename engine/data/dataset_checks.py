"""Checks of all cases before work starts: a broken case stops a run in its first minute, not in its tenth hour."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.data.case_checks import CaseReport, examine_case
from engine.data.cases import Case, image_files
from engine.data.datasets import DatasetDescription
from engine.runtime.distributed import gather, shard
from engine.runtime.errors import raise_problems
from engine.runtime.stop_requests import Poll, no_requests
from engine.runtime.threads import map_in_threads
from engine.runtime.warning_lines import Warnings, merge_warnings, print_warnings

SAMPLED = 2  # cases of each split whose voxels training reads, to find what is wrong with all of them

Splits = Mapping[str, Sequence[Case]]  # "training", "validation", "test" -> cases


@dataclass(frozen=True)
class DatasetReport:
    """Report on a dataset.

    Args:
        cases: reports on the cases, in the order of the splits.
        problems: problems of single cases, and of several cases together, one line each.
        warnings: warnings about single cases, and about several cases together, one line each, by kind.
    """

    cases: list[CaseReport]
    problems: list[str]
    warnings: Warnings


def check_cases(
    splits: Splits, description: DatasetDescription, workers: int, full: bool, poll: Poll = no_requests
) -> None:
    """Examine all cases, print one line for each kind of warning, and raise an error if there is any problem.

    Each process examines its shard of the cases, and all processes raise the problems that any of them found.

    Args:
        splits, description, workers, poll: as for ``examine_cases``.
        full: whether to read the voxels of all cases, not only of the first ``SAMPLED`` of each split.
    Raises:
        InputError: one line per problem.
    """
    report = examine_cases(splits, description, workers, None if full else SAMPLED, poll=poll)
    print_warnings(report.warnings)
    raise_problems(report.problems)


def examine_cases(
    splits: Splits,
    description: DatasetDescription,
    workers: int,
    sample: int | None,
    foreground: bool = False,
    poll: Poll = no_requests,
) -> DatasetReport:
    """Examine every case, and compare the cases with each other.

    Args:
        splits: cases of each split by its name, each case with "id", "image" and, if any, "label".
        description: expected channels, classes, spacing and window.
        workers: cases that a process examines at the same time; 0 counts as 1.
        sample: number of cases of each split whose voxels are read as well, not only their headers; None for all.
        foreground: as for ``examine_case``.
        poll: called after each case.
    """
    tasks = [
        (case, split, description, sample is None or place < sample, foreground)
        for split, members in splits.items()
        for place, case in enumerate(members)
    ]
    cases = gather(map_in_threads(lambda task: _examine(*task), shard(tasks), workers, "checking cases", poll))
    problems = [problem for case in cases for problem in case.problems]
    leaks, duplicates = _find_shared_images(cases, by_voxels=sample is None)
    of_several = {
        "duplicates": duplicates,
        "shared ids": list(_find_shared_ids(cases)),
        "missing classes": _find_missing_classes(cases, description) if sample is None else [],
    }
    warnings = merge_warnings([*(case.warnings for case in cases), of_several])
    return DatasetReport(cases, problems + leaks, warnings)


def _examine(case: Case, split: str, description: DatasetDescription, full: bool, foreground: bool) -> CaseReport:
    try:
        return examine_case(case, split, description, full, foreground)
    except MemoryError:  # other cases may be smaller
        report = CaseReport(case["id"], split, image_files(case))
        report.problems.append(f"{report.name}: does not fit in memory, expected a smaller case or lower --num_workers")
        return report


def _find_shared_images(cases: Sequence[CaseReport], by_voxels: bool) -> tuple[list[str], list[str]]:
    """Find images that several cases share: across splits (problems, also added to each case) or in one (warnings).

    Images are compared by their voxels if these were read, or else by the identity of the file, whatever its name.
    """
    same = defaultdict(list)
    for case in cases:
        if (key := (by_voxels and case.digest) or _file_identity(case)) is not None:
            same[key].append(case)
    leaks, duplicates = [], []
    for group in same.values():
        if len(group) > 1:
            images = ", ".join(f"{case.files[0]} ({case.split})" for case in group)
            found = f"found the same {'voxels' if by_voxels and group[0].digest else 'file'} in {len(group)} cases"
            if len({case.split for case in group}) > 1:
                leaks.append(f"{images}: {found}, expected no case in two splits")
                for case in group:
                    case.problems.append(leaks[-1])
            else:
                duplicates.append(f"{images}: {found}")
    return leaks, duplicates


def _file_identity(case: CaseReport) -> tuple[int, int] | None:
    """Return device and inode of a case's first file, which all links to it share; None if it cannot be accessed."""
    try:
        status = os.stat(case.files[0])
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _find_shared_ids(cases: Sequence[CaseReport]) -> Iterator[str]:
    """Yield a line for each id that occurs in several splits."""
    splits = defaultdict(list)
    for case in cases:
        splits[case.id].append(case.split)
    for name, found in splits.items():
        if len(found) > 1:
            yield f"{name}: found the same id in {' and '.join(found)}, expected different patients"


def _find_missing_classes(cases: Sequence[CaseReport], description: DatasetDescription) -> list[str]:
    """Report the classes that no training case has, in one line."""
    counted = [case.voxels_by_class for case in cases if case.split == "training" and case.voxels_by_class]
    if not counted:
        return []
    missing = [name for name in description.classes[1:] if not any(counts[name] for counts in counted)]
    found = f"found no voxel of {', '.join(missing)} in any of {len(counted)} training cases"
    return [f"{found}, expected every class in some of them"] if missing else []

"""Every case looked at before work starts: a broken one stops a run in its first minute, not in its tenth hour."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from engine.data.case_checks import CaseReport, examine_case
from engine.data.cases import Case, image_files
from engine.data.datasets import DatasetDescription
from engine.runtime.distributed import gather, process_rank, shard
from engine.runtime.errors import raise_problems

Splits = Mapping[str, Sequence[Case]]  # "training", "validation", "test" -> cases


@dataclass(frozen=True)
class DatasetReport:
    """What is known of a dataset.

    Args:
        cases: in the order of the splits.
        problems: of all the cases and of several cases together, a line each.
        warnings: likewise.
    """

    cases: list[CaseReport]
    problems: list[str]
    warnings: list[str]


def check_cases(splits: Splits, description: DatasetDescription, workers: int, full: bool) -> None:
    """Print a line for every warning, and stop where there is a problem.

    Of several processes each looks at its part of the cases, and all of them raise what any of them found.

    Args: as ``examine_cases``.
    Raises:
        InputError: a line for every problem.
    """
    report = examine_cases(splits, description, workers, full)
    if process_rank() == 0:
        for warning in report.warnings:
            print(f"warning: {warning}")
    raise_problems(report.problems)


def examine_cases(splits: Splits, description: DatasetDescription, workers: int, full: bool) -> DatasetReport:
    """Look at every case, and compare the cases with each other.

    Args:
        splits: name -> cases, each with "id", "image" and, where there is one, "label".
        description: channels, classes, spacing and window to expect.
        workers: cases that a process looks at at the same time; 0 is taken for 1.
        full: read the voxels too, not the headers alone.
    """
    part = shard([(case, split) for split, of_split in splits.items() for case in of_split])
    with ThreadPoolExecutor(max(1, workers)) as pool:
        reports = pool.map(lambda item: _examine(item[0], item[1], description, full), part)
        bar = tqdm(reports, "checking cases", len(part), leave=False, disable=process_rank() != 0)
        cases = gather(list(bar))
    problems = [problem for case in cases for problem in case.problems]
    leaks, doubles = _compare_images(cases)
    warnings = [warning for case in cases for warning in case.warnings]
    lacking = _find_missing_classes(cases, description) if full else []
    return DatasetReport(cases, problems + leaks, [*warnings, *doubles, *_find_shared_ids(cases), *lacking])


def _examine(case: Case, split: str, description: DatasetDescription, full: bool) -> CaseReport:
    try:
        return examine_case(case, split, description, full)
    except MemoryError:  # the others may be smaller
        report = CaseReport(case["id"], split, image_files(case))
        report.problems.append(f"{report.name}: does not fit in memory, expected a smaller one or lower --num_workers")
        return report


def _compare_images(cases: Sequence[CaseReport]) -> tuple[list[str], list[str]]:
    """Images that several cases share: across splits (problems, of each of the cases too) and within one (warnings).

    They share their voxels where these were read, and the very file, whatever its name, where not.
    """
    same = defaultdict(list)
    for case in cases:
        if (key := case.digest or _file_identity(case)) is not None:
            same[key].append(case)
    leaks, doubles = [], []
    for group in same.values():
        if len(group) > 1:
            images = ", ".join(f"{case.files[0]} ({case.split})" for case in group)
            found = f"found the same {'voxels' if group[0].digest else 'file'} in {len(group)} cases"
            if len({case.split for case in group}) > 1:
                leaks.append(f"{images}: {found}, expected no case in two splits")
                for case in group:
                    case.problems.append(leaks[-1])
            else:
                doubles.append(f"{images}: {found}")
    return leaks, doubles


def _file_identity(case: CaseReport) -> tuple[int, int] | None:
    """What all the links to a case's first file have in common; None where it cannot be read."""
    try:
        status = os.stat(case.files[0])
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _find_shared_ids(cases: Sequence[CaseReport]) -> Iterator[str]:
    """Cases of different splits that have the same id."""
    splits = defaultdict(list)
    for case in cases:
        splits[case.id].append(case.split)
    for name, found in splits.items():
        if len(found) > 1:
            yield f"{name}: found the id in {' and '.join(found)}, expected another patient behind it"


def _find_missing_classes(cases: Sequence[CaseReport], description: DatasetDescription) -> list[str]:
    """Classes that no training case has, in one line."""
    counted = [case.voxels_by_class for case in cases if case.split == "training" and case.voxels_by_class]
    if not counted:
        return []
    lacking = [name for name in description.classes[1:] if not any(counts[name] for counts in counted)]
    found = f"found no voxel of {', '.join(lacking)} in any of {len(counted)} training cases"
    return [f"{found}, expected every class in some of them"] if lacking else []

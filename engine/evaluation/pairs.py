"""Predictions and labels: paired by id, checked, and scored case by case."""

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.data.case_checks import read_classes
from engine.data.datasets import DatasetDescription, LabelValues
from engine.data.folders import PREDICTION_ENDING, Volumes, list_volumes
from engine.data.header_checks import FileHeader, read_header, review_headers
from engine.data.loading import case_loader
from engine.evaluation.scores import score_structures
from engine.runtime.errors import InputError, describe_error, raise_problems
from engine.runtime.warning_lines import Warnings, collect_warnings, merge_warnings
from engine.runtime.wording import count_of, list_some

SUFFIX = PREDICTION_ENDING.removesuffix(".nii.gz")
SKEW = 0.01  # cosine of the angle between two axes, up to which they count as perpendicular
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pair:
    """A label and its predictions.

    Args:
        case: id of the case.
        label: path of the label.
        predictions: paths of the predictions, by the names of their folders.
    """

    case: str
    label: str
    predictions: dict[str, str]


@dataclass(frozen=True)
class Findings:
    """What is wrong with a pair: problems, one line each, and warnings by kind."""

    problems: list[str]
    warnings: Warnings


@dataclass(frozen=True)
class Scored:
    """Scores of a case: those of each folder by its name, (structures, metrics)."""

    case: str
    scores: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Failure:
    """Why a case has no result, in one line."""

    reason: str


def name_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Name folders by the last part of their paths, or by as many parts as distinguish them.

    Raises:
        InputError: a folder is given twice.
    """
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise InputError(f"--predictions: found {folders[place]} twice, expected different folders")
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = [_printable(str(Path(*path.parts[-count:]))) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, folders, strict=True))


def _printable(text: str) -> str:
    """Escape line breaks and bytes that are no text, which tables and pictures cannot show."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def find_pairs(
    labels: Path, folders: Mapping[str, Path], allow_missing: bool, wanted: Collection[str] | None = None
) -> tuple[list[Pair], dict[str, list[str]], Warnings]:
    """Pair the predictions of each folder with the labels by id; <case>_seg.nii.gz has the id <case> as well.

    Args:
        labels: folder of labels, one file per case.
        folders: folders of predictions by name.
        allow_missing: whether labels may have no prediction.
        wanted: ids of the cases to score; None for all labels.
    Returns: cases that have a prediction, sorted by id; the ids that each folder lacks; warnings.
    Raises:
        InputError: one line per problem of the folders, id with two predictions, and folder that lacks predictions.
    """
    labelled = _choose(list_volumes(labels), labels, wanted)
    matches = {name: _match(folder, labels, labelled.paths, allow_missing) for name, folder in folders.items()}
    raise_problems([*labelled.problems, *(problem for match in matches.values() for problem in match.problems)])
    pairs = [
        Pair(case, path, {name: match.paths[case] for name, match in matches.items() if case in match.paths})
        for case, path in sorted(labelled.paths.items())
    ]
    missing = {name: sorted(labelled.paths.keys() - match.paths.keys()) for name, match in matches.items()}
    warnings = collect_warnings([labelled.warnings, *(match.warnings for match in matches.values())])
    return [pair for pair in pairs if pair.predictions], missing, warnings


def _choose(labelled: Volumes, folder: Path, wanted: Collection[str] | None) -> Volumes:
    """Keep the labels of the wanted cases."""
    if wanted is None or not labelled.paths:
        return labelled
    problems = [*labelled.problems]
    if unlabelled := sorted(set(wanted) - labelled.paths.keys()):
        found = f"found no label of {list_some(unlabelled)}"
        problems.append(f"{folder}: {found}, expected the labels of {count_of(len(wanted), 'case')} of --split")
    chosen = {case: path for case, path in labelled.paths.items() if case in wanted}
    return labelled._replace(paths=chosen, problems=problems)


def _match(folder: Path, label_folder: Path, labels: Mapping[str, str], allow_missing: bool) -> Volumes:
    """Find the prediction of each label in a folder: paths by the ids of the labels."""
    found = list_volumes(folder)
    if not found.paths or not labels:
        return found
    paths: dict[str, str] = {}
    problems, others = [*found.problems], []
    for name, path in found.paths.items():
        case = name if name in labels else name.removesuffix(SUFFIX)
        if case not in labels:
            others.append(Path(path).name)
        elif case in paths:
            names = f"{Path(paths[case]).name} and {Path(path).name}"
            problems.append(f"{folder}: found {names} for {case}, expected one prediction per label")
        else:
            paths[case] = path
    if same := sorted(case for case, path in paths.items() if os.path.samefile(path, labels[case])):
        problems.append(f"{folder}: found the labels themselves ({list_some(same)}), expected predictions")
    warnings = {f"{kind} in {folder}": line for kind, line in found.warnings.items()}  # a line for each folder
    if others:
        left_out = f"left out {list_some(others)}, which belong to no label to score in {label_folder}"
        warnings[f"no label in {folder}"] = f"{folder}: {left_out}"
    if missing := sorted(labels.keys() - paths.keys()):
        lacking = f"{folder}: found {len(missing)} of {len(labels)} labels in {label_folder} without a prediction"
        if paths and allow_missing:
            warnings[f"missing in {folder}"] = f"{lacking} ({list_some(missing)}), which are left out"
        else:
            expected = "one prediction per label" + (", --split, or --allow_missing" if paths else "")
            problems.append(f"{lacking} ({', '.join(missing)}), expected {expected}")
    return Volumes(paths, problems, warnings)


def check_pairs(pairs: Sequence[Pair], description: DatasetDescription, num_workers: int) -> Warnings:
    """Read all files of all pairs, and check them.

    Args:
        pairs: the cases.
        description: values of the classes.
        num_workers: processes; 0 for none but this one.
    Returns: warnings.
    Raises:
        InputError: one line per problem: a file that cannot be read, a prediction on another grid than its label, label
            values of no class.
    """
    results = _for_each(pairs, partial(_check, description=description), num_workers, "checking cases")
    found = [Findings([result.reason], {}) if isinstance(result, Failure) else result for result in results]
    raise_problems([problem for findings in found for problem in findings.problems])
    return merge_warnings(findings.warnings for findings in found)


def score_pairs(pairs: Sequence[Pair], description: DatasetDescription, num_workers: int) -> list[Scored | Failure]:
    """Score the predictions of all pairs.

    Args:
        pairs: checked cases.
        description: classes, regions and tolerances.
        num_workers: processes; 0 for none but this one.
    Returns: for each case its scores, or why it has none.
    """
    return _for_each(pairs, partial(_score, description=description), num_workers, "scoring cases")


def _check(pair: Pair, description: DatasetDescription) -> Findings:
    label = read_header(pair.label)
    predictions = [read_header(path, fix_affine=description.fix_affine) for path in pair.predictions.values()]
    problems, warnings = review_headers([label, *predictions], description.fix_affine)
    problems += read_classes(label, description.labels)[1]
    for header in predictions:  # which cannot be of unknown class
        problems += read_classes(header, replace(description.labels, ignored=()))[1]
    return Findings(problems, merge_warnings([warnings, _warn_of_skew(label)]))


def _warn_of_skew(label: FileHeader) -> Warnings:
    """Warn of a grid whose axes are not at right angles, as of some CT with a tilted gantry."""
    if label.grid is None:
        return {}
    axes = label.grid.affine[:3, :3] / label.grid.spacing
    cosine = float(np.abs(np.triu(axes.T @ axes, 1)).max())
    if cosine <= SKEW:
        return {}
    found = f"found axes at an angle of {math.degrees(math.acos(cosine)):.0f} degrees, expected right angles"
    return {"skew": [f"{label.path}: {found}: HD95 and NSD are computed as if they were"]}


def _score(pair: Pair, description: DatasetDescription) -> Scored:
    header, label = _read(pair.label, description.labels)
    assert header.grid is not None
    scores = {}
    for name, path in pair.predictions.items():
        _, prediction = _read(path, replace(description.labels, ignored=()), description.fix_affine)
        scores[name] = score_structures(prediction, label, header.grid, description.structures, description.tolerances)
    return Scored(pair.case, scores)


def _read(path: str, labels: LabelValues, fix_affine: bool = False) -> tuple[FileHeader, NDArray[np.uint8]]:
    """Read a file again that has been checked; InputError if it has changed for the worse since."""
    header = read_header(path, fix_affine=fix_affine)
    classes, problems = read_classes(header, labels)
    raise_problems([*header.problems, *problems])
    assert classes is not None
    return header, classes


class _Results(Dataset[Result | Failure], Generic[Result]):
    """Dataset of the results of a function of each pair; an error is replaced by its failure.

    It raises no exception, since one in a loading process would end all of them.
    """

    def __init__(self, pairs: Sequence[Pair], work: Callable[[Pair], Result]) -> None:
        self.pairs, self.work = pairs, work

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Result | Failure:
        pair = self.pairs[index]
        try:
            return self.work(pair)
        except Exception as error:  # no error of a single case may end a run over hundreds
            return Failure(describe_error(pair.case, error, "--num_workers"))


def _for_each(
    pairs: Sequence[Pair], work: Callable[[Pair], Result], num_workers: int, title: str
) -> list[Result | Failure]:
    loader = case_loader(_Results(pairs, work), num_workers)
    return list(tqdm(loader, title, leave=False))

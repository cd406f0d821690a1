"""Drafts of a dataset's description: what a user gives of it, completed by what headers and label maps tell."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.cases import find_splits, image_files, validation_folder
from engine.data.datasets import DATASETS, NEUTRAL, DatasetDescription, read_values
from engine.data.folders import list_volumes
from engine.data.foreign_descriptions import translate
from engine.data.header_checks import Grid, format_size, read_header
from engine.data.labels import ROUNDING
from engine.data.nifti import open_volume, read_voxels
from engine.data.plan_rules import choose_spacing
from engine.data.splits import TRAINING, Split
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.threads import map_in_threads
from engine.runtime.warning_lines import Warnings
from engine.runtime.wording import count_of, list_some

LEAST_INSTANCES = 10  # values; fewer are classes, however rare
GIVEN = "as given"
OWN_CHANNEL, OWN_CHANNELS = "image", "channel_"  # names of channels whose names nobody gives


@dataclass(frozen=True)
class Draft:
    """Draft of a description, complete but for the scaling of intensities.

    Args:
        description: the description. Unless ``reasons`` has "intensity", its rule for intensities means nothing.
        reasons: why a field has its value, by the field's name.
        warnings: doubts about these values, by kind.
    """

    description: DatasetDescription
    reasons: dict[str, str]
    warnings: Warnings


def make_draft(dataset: str | None, root: Path, fix_affine: bool, workers: int, split: Split | None = None) -> Draft:
    """Complete what a user gives of a dataset by its name, labels, channels and spacing.

    Args:
        dataset: a name in ``DATASETS``, or the path of a description that may lack fields; None if nothing is given.
        root: dataset folder.
        fix_affine: as in ``DatasetDescription``.
        workers: label maps that are read at the same time; 0 counts as 1.
        split: split that says which cases are for training, in place of the folders.
    Raises:
        InputError: one line per problem of the description, of the folders, or of the label maps.
    """
    values, origin = _read_fields(dataset)
    reasons = dict.fromkeys(values, GIVEN)
    warnings: Warnings = {}
    if "name" not in values:
        values["name"], reasons["name"] = root.absolute().name, "the folder's name"
    if "labels" not in values:
        values["labels"], reasons["labels"], warnings = _find_labels(root, workers)
    if "channels" not in values:
        values["channels"], reasons["channels"] = _find_channels(root)
    read = DatasetDescription.from_json(NEUTRAL | values, str(root) if dataset is None else dataset)
    description = replace(read, fix_affine=fix_affine, origin=origin)
    if "spacing" not in values and (grids := _training_grids(root, description, split)):
        shapes, spacings = zip(*((grid.shape, grid.spacing) for grid in grids), strict=True)
        spacing, reasons["spacing"] = choose_spacing(shapes, spacings)
        description = replace(description, spacing=spacing)
    return Draft(description, reasons, warnings)


def _read_fields(dataset: str | None) -> tuple[dict[str, Any], str]:
    """Read the fields that a user gives, in the terms of this program, and a line on their origin."""
    if dataset is None:
        return {}, ""
    if dataset in DATASETS:
        return DATASETS[dataset].to_json(), ""
    path = Path(dataset)
    if path.suffix.lower() != ".json":
        expected = f"expected {', '.join(DATASETS)}, the path of a .json file, or no --dataset"
        raise InputError(f"--dataset: found {dataset!r}, {expected}")
    values = read_values(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: found no JSON object, expected one with some fields of a description")
    translated, origin, _ = translate(values, path)
    given = {name: value for name, value in translated.items() if name != "intensity" or name in values}
    return given, origin and f"{path}: {origin}"


def _find_labels(root: Path, workers: int) -> tuple[dict[str, int], str, Warnings]:
    """Find the values in all label maps, and make a class of each.

    Raises:
        InputError: a line per folder without label maps, unreadable file, or file with other values than whole numbers.
    """
    folders = [root / "labelsTr", validation_folder(root, "labels"), root / "labelsTs"]
    found = [list_volumes(folder) for folder in folders if folder == folders[0] or folder.is_dir()]
    raise_problems([line for volumes in found for line in volumes.problems])
    paths = [path for volumes in found for path in volumes.paths.values()]
    results = map_in_threads(_try_values, paths, workers, "finding labels")
    raise_problems([line for _, problem in results for line in problem])
    counts = Counter(value for values, _ in results for value in values)
    labels = {"background": 0} | {f"class_{value}": value for value in sorted(counts) if value != 0}
    many = count_of(len(labels) - 1, "value")
    reason = f"{many} in {count_of(len(paths), 'label map')}"
    rare = [value for value, count in counts.items() if value != 0 and count < len(paths) / 2]
    if len(labels) <= LEAST_INSTANCES or len(rare) < len(labels) / 2:
        return labels, reason, {}
    line = f"{folders[0]}: found {many}, of which {len(rare)} are in less than half of the label maps"
    return labels, reason, {"instances": [f"{line}; if they number instances, make them one class"]}


def _try_values(path: str) -> tuple[list[int], list[str]]:
    """Return the values of a label map, or the problem with it."""
    try:
        return _values(path), []
    except InputError as error:
        return [], [str(error)]


def _values(path: str) -> list[int]:
    slabs = np.moveaxis(read_voxels(path), -1, 0)  # slice by slice, since unique() sorts a copy
    values = np.unique(np.concatenate([np.unique(slab) for slab in slabs]))
    if wrong := [f"{value:.6g}" for value in values if not abs(value - np.rint(value)) <= ROUNDING]:
        raise InputError(f"{path}: found label values {list_some(wrong)}, expected whole numbers")
    return sorted({int(np.rint(value)) for value in values})


def _find_channels(root: Path) -> tuple[list[str], str]:
    """Find how many channels the images have: in one file each, or in one file per channel as in nnU-Net."""
    images, labels = list_volumes(root / "imagesTr").paths, list_volumes(root / "labelsTr").paths
    endings = {ending for name in images for case, _, ending in [name.rpartition("_")] if case in labels}
    if not images.keys() & labels.keys() and endings and all(re.fullmatch(r"\d{4}", ending) for ending in endings):
        count, reason = len(endings), f"files end with {', '.join(f'_{ending}' for ending in sorted(endings))}"
    else:
        shape = open_volume(next(iter(images.values()))).shape if images else ()
        count = int(np.prod(shape[3:], dtype=int))
        reason = "one file per case" if count == 1 else f"files of shape {format_size(shape)}"
    names = [OWN_CHANNEL] if count == 1 else [f"{OWN_CHANNELS}{number}" for number in range(count)]
    return names, reason


def _training_grids(root: Path, description: DatasetDescription, split: Split | None) -> list[Grid]:
    """Read the grids of the training cases, as far as their headers are valid, with axes R-L, A-P and I-S."""
    channels = len(description.channels)
    files = [image_files(case) for case in find_splits(root, description, split=split)[TRAINING].cases]
    headers = [read_header(first, channels // (1 + len(others))) for first, *others in files]
    return [header.grid.turn_to_ras() for header in headers if header.grid is not None]

"""Cases: volumes of a dataset folder, found and paired by id."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from engine.data.datasets import DatasetDescription
from engine.data.folders import Volumes, group_channels, list_volumes
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.warning_lines import Warnings, collect_warnings, merge_warnings, print_warnings
from engine.runtime.wording import list_some


class Case(TypedDict):
    """One case of a dataset. Transforms replace "image" and "label" by volumes; "id" and "source" stay.

    Keys:
        id: name of the files without extension and channel number.
        image: path of a NIfTI file, or one path per channel.
        source: the same as image.
        label: path of the label map, if any.
    """

    id: str
    image: str | list[str]
    source: str | list[str]
    label: NotRequired[str]


def make_case(name: str, image: str | Sequence[str], label: str | None = None) -> Case:
    """Make a case from its id and the paths of its files."""
    paths = image if isinstance(image, str) else list(image)
    case: Case = {"id": name, "image": paths, "source": paths}
    return case if label is None else {**case, "label": label}


def image_files(case: Case) -> list[str]:
    """List the files of a case's image: one, or one per channel; the first defines the grid of the case."""
    return [case["source"]] if isinstance(case["source"], str) else case["source"]


def case_files(case: Case) -> list[str]:
    """List the files of a case: images first, then the label, if any."""
    return [*image_files(case), case["label"]] if "label" in case else image_files(case)


class Found(NamedTuple):
    """Cases that were found.

    Args:
        cases: the cases that can be paired, sorted by id.
        problems: one line each.
        warnings: lines by kind.
    """

    cases: list[Case]
    problems: list[str]
    warnings: Warnings


def find_training_cases(root: Path, description: DatasetDescription) -> tuple[list[Case], list[Case]]:
    """Find the training and validation cases of a dataset folder, sorted by id, and print a line for each warning.

    Args:
        root: folder with imagesTr, labelsTr, imagesVal and labelsVal.
        description: description of the dataset.
    Raises:
        InputError: one line per missing or empty folder, image without a label, label without an image, ...
    """
    splits = find_splits(root, description)
    print_warnings(merge_warnings(found.warnings for found in splits.values()))
    raise_problems([problem for found in splits.values() for problem in found.problems])
    return splits["training"].cases, splits["validation"].cases


def find_test_cases(
    root: str | None, images: str | None, labels: str | None, description: DatasetDescription
) -> list[Case]:
    """Find the cases to predict, sorted by id, with those of their labels that exist; print a line for each warning.

    Args:
        root: dataset folder, of which imagesTs or else imagesVal is used.
        images: folder or file of images, in place of the root's.
        labels: folder of labels; by default the folder of the images with "labels" in place of "images" in its name,
            if it exists.
        description: description of the dataset.
    Raises:
        InputError: neither root nor images is given; one line per problem of the folders.
    """
    if images is not None:
        image_folder = Path(images)
    elif root is None:
        raise InputError("--root: found none, expected a dataset folder, or --images with a folder or a file")
    else:
        image_folder = Path(root, "imagesTs")
        image_folder = image_folder if image_folder.is_dir() else validation_folder(Path(root), "images")
    label_folder = matching_label_folder(image_folder) if labels is None else Path(labels)
    found = find_cases(image_folder, label_folder, len(description.channels), description.endings, every_label=False)
    print_warnings(found.warnings)
    raise_problems(found.problems)
    return found.cases


def validation_folder(root: Path, kind: str) -> Path:
    """Return the folder of validation images or labels: imagesVal, or imagesVa as AMOS names it."""
    short = root / f"{kind}Va"
    return short if short.is_dir() and not (root / f"{kind}Val").is_dir() else root / f"{kind}Val"


def matching_label_folder(images: Path) -> Path | None:
    """Return the folder of labels next to that of the images, or else next to the folder that it links to."""
    folder = Path(os.path.abspath(images.parent if os.path.isfile(images) else images))
    for path in (folder, Path(os.path.realpath(folder))):
        labels = path.with_name(path.name.replace("images", "labels", 1))
        if labels != path and labels.is_dir():
            return labels
    return None


def find_splits(root: Path, description: DatasetDescription, test: bool = False) -> dict[str, Found]:
    """Find the cases of a dataset folder by split.

    Args:
        root: dataset folder.
        description: description of the dataset.
        test: whether to find test cases as well, which may be missing or have no labels.
    """
    if not os.path.isdir(root):
        expected = "expected a folder with imagesTr, labelsTr, imagesVal and labelsVal"
        return {"training": Found([], [f"--root: {root} not found, {expected}"], {})}
    channels, endings = len(description.channels), description.endings
    folders = {
        "training": (root / "imagesTr", root / "labelsTr"),
        "validation": (validation_folder(root, "images"), validation_folder(root, "labels")),
    }
    splits = {split: find_cases(*pair, channels, endings) for split, pair in folders.items()}
    images, labels = root / "imagesTs", root / "labelsTs"
    if test and os.path.isdir(images):
        known = labels if os.path.isdir(labels) else None
        splits["test"] = find_cases(images, known, channels, endings, every_label=False)
    return splits


def pair_cases(images: Path, labels: Path | None, channels: int = 1, endings: Sequence[str] = ()) -> list[Case]:
    """Find cases as ``find_cases`` does, and raise its problems.

    Raises:
        InputError: one line per problem.
    """
    found = find_cases(images, labels, channels, endings)
    raise_problems(found.problems)
    return found.cases


def find_cases(
    images: Path, labels: Path | None, channels: int = 1, endings: Sequence[str] = (), every_label: bool = True
) -> Found:
    """Find the cases of an image folder (or one image file) and pair them with their labels by id.

    An id is a file's name without .nii or .nii.gz and without the ending of its channel (``group_channels``).

    Args:
        images: folder or file of images.
        labels: folder of labels, or None.
        channels: number of channels.
        endings: what follows the id in the names of each channel's file, or none.
        every_label: whether an image without a label is a problem; otherwise it is a case without one.
    Returns: all cases whose files are known, with problems: missing folders, ids with two files, incomplete channels,
        images without a label and labels without an image; and warnings: files left out, images without a label.
    """
    volumes = list_volumes(images, skip_predictions=True)
    labelled = list_volumes(labels, skip_predictions=True) if labels is not None else Volumes({}, [], {})
    grouped = group_channels(images, volumes.paths, channels, endings, labelled.paths)
    problems = [*volumes.problems, *labelled.problems, *grouped.problems]
    warnings = collect_warnings([volumes.warnings, labelled.warnings, grouped.warnings])
    if not labelled.paths:
        cases = [make_case(name, image) for name, image in sorted(grouped.complete.items())]
        return Found(cases, problems, warnings)
    known = grouped.complete.keys() | grouped.incomplete
    if known and (without := sorted(known - labelled.paths.keys())):
        if every_label:
            found = ", ".join(without)
            problems.append(f"{images}: found {found} without a label in {labels}, expected one label per image")
        elif images.is_dir():
            found = f"{len(without)} of {len(known)} images without a label in {labels} ({list_some(without)})"
            warnings["no label"] = [f"{images}: found {found}, which are predicted and not scored"]
    if known and not os.path.isfile(images) and (without := sorted(labelled.paths.keys() - known)):
        if every_label:
            found = ", ".join(without)
            problems.append(f"{labels}: found {found} without an image in {images}, expected one image per label")
        else:
            warnings["no image"] = [f"{labels}: found {list_some(without)} without an image in {images}"]
    wanted = grouped.complete if not every_label else grouped.complete.keys() & labelled.paths.keys()
    cases = [make_case(name, grouped.complete[name], labelled.paths.get(name)) for name in sorted(wanted)]
    return Found(cases, problems, warnings)

"""Cases: volumes of a dataset folder, found and paired by id."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from engine.data.datasets import DatasetDescription
from engine.data.folders import Volumes, group_channels, list_volumes
from engine.data.splits import PARTS, TEST, TRAINING, VALIDATION, Split
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.warning_lines import Warnings, collect_warnings, merge_warnings, print_warnings
from engine.runtime.wording import count_of, list_some


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


def find_training_cases(
    root: Path, description: DatasetDescription, split: Split | None = None
) -> tuple[list[Case], list[Case]]:
    """Find the training and validation cases of a dataset folder, sorted by id, and print a line for each warning.

    Args:
        root: folder with imagesTr, labelsTr, imagesVal and labelsVal; with a split, those that exist.
        description: description of the dataset.
        split: split that says which case is in which part, in place of the folders.
    Raises:
        InputError: one line per missing or empty folder, image without a label, label without an image, ...
    """
    training, validation = _settle(find_splits(root, description, split=split))
    return training, validation


def _settle(splits: Mapping[str, Found]) -> list[list[Case]]:
    """Print a line for each kind of warning, raise all problems, and return the cases of each split."""
    print_warnings(merge_warnings(found.warnings for found in splits.values()))
    raise_problems([problem for found in splits.values() for problem in found.problems])
    return [found.cases for found in splits.values()]


def find_test_cases(
    root: str | None,
    images: str | None,
    labels: str | None,
    description: DatasetDescription,
    split: Split | None = None,
    part: str | None = None,
) -> list[Case]:
    """Find the cases to predict, sorted by id, with those of their labels that exist; print a line for each warning.

    Args:
        root: dataset folder, of which imagesTs or else imagesVal is used.
        images: folder or file of images, in place of the root's.
        labels: folder of labels; by default the folder of the images with "labels" in place of "images" in its name,
            if it exists.
        description: description of the dataset.
        split: split that says which cases of the root to predict, in place of the other arguments.
        part: its part to predict; by default the test part, or else that for validation.
    Raises:
        InputError: neither root nor images is given, or a split with images or labels, or a part without a split; one
            line per problem of the folders.
    """
    if split is not None:
        if root is None or images is not None or labels is not None:
            raise InputError("--split: found it without --root, or with --images or --labels, expected --root alone")
        return _settle(find_parts(Path(root), description, split, [split.part_to_predict(part)]))[0]
    if part is not None:
        raise InputError(f"--part: found {part} without --split, expected both or neither")
    if images is not None:
        image_folder = Path(images)
    elif root is None:
        raise InputError("--root: found none, expected a dataset folder, or --images with a folder or a file")
    else:
        image_folder = Path(root, "imagesTs")
        image_folder = image_folder if image_folder.is_dir() else validation_folder(Path(root), "images")
    label_folder = matching_label_folder(image_folder) if labels is None else Path(labels)
    found = find_cases(image_folder, label_folder, len(description.channels), description.endings, every_label=False)
    return _settle({TEST: found})[0]


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


def find_splits(
    root: Path, description: DatasetDescription, test: bool = False, split: Split | None = None
) -> dict[str, Found]:
    """Find the cases of a dataset folder for training and validation, and for the test.

    Args:
        root: dataset folder.
        description: description of the dataset.
        test: whether to find test cases as well, which may be missing or have no labels.
        split: split that says which case is in which part, in place of the folders.
    """
    if split is not None:
        return find_parts(root, description, split, PARTS if test and TEST in split.parts else (TRAINING, VALIDATION))
    if not os.path.isdir(root):
        expected = "expected a folder with imagesTr, labelsTr, imagesVal and labelsVal"
        return {TRAINING: Found([], [f"--root: {root} not found, {expected}"], {}), VALIDATION: Found([], [], {})}
    channels, endings = len(description.channels), description.endings
    training, validation, (images, labels) = _folders(root)
    splits = {
        TRAINING: find_cases(*training, channels, endings),
        VALIDATION: find_cases(*validation, channels, endings),
    }
    if not os.path.isdir(validation[0]):
        splits[VALIDATION].problems[0] += ", or --split with a file that says which cases are for validation"
    if test and os.path.isdir(images):
        known = labels if os.path.isdir(labels) else None
        splits[TEST] = find_cases(images, known, channels, endings, every_label=False)
    return splits


def _folders(root: Path) -> list[tuple[Path, Path]]:
    """List the folders of images and labels for training, validation and test."""
    validation = validation_folder(root, "images"), validation_folder(root, "labels")
    return [(root / "imagesTr", root / "labelsTr"), validation, (root / "imagesTs", root / "labelsTs")]


def find_parts(root: Path, description: DatasetDescription, split: Split, parts: Sequence[str]) -> dict[str, Found]:
    """Find the cases of a split by their ids, in all folders of a dataset folder that exist.

    Args:
        root: dataset folder.
        description: description of the dataset.
        split: the split.
        parts: parts whose cases to find. Those for training and validation need a label.
    Raises:
        InputError: there is no such folder, or the split has no such part.
    Returns: the cases of each part, sorted by id; what concerns several parts is in the first.
    """
    everything = find_all_cases(root, description)
    known: dict[str, list[Case]] = {}
    for case in everything.cases:
        known.setdefault(case["id"], []).append(case)
    warnings = dict(everything.warnings)
    listed = {name for ids in split.parts.values() for name in ids}
    if split.fold is not None and (others := sorted(known.keys() - listed)):
        found = f"found {count_of(len(others), 'case')} in no part of the split {split.name!r}"
        warnings["in no part"] = [f"{root}: {found} ({list_some(others)})"]
    splits = {}
    for part in parts:
        cases, wrong = _look_up(split.ids(part), known, part != TEST)
        expected = f"expected the {count_of(len(split.ids(part)), f'{part} case')} of the split {split.name!r}"
        splits[part] = Found(cases, [f"--root: {root}: found {line}, {expected}" for line in wrong], {})
    first = splits[parts[0]]
    return splits | {parts[0]: Found(first.cases, everything.problems + first.problems, warnings)}


def find_all_cases(root: Path, description: DatasetDescription) -> Found:
    """Find the cases in all folders of a dataset folder that exist, with and without labels.

    Raises:
        InputError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise InputError(f"--root: {root} not found, expected a dataset folder")
    channels, endings = len(description.channels), description.endings
    folders = [(images, labels if os.path.isdir(labels) else None) for images, labels in _folders(root)]
    places = [find_cases(*pair, channels, endings, every_label=False) for pair in folders if os.path.isdir(pair[0])]
    warnings = merge_warnings(place.warnings for place in places)
    warnings.pop("no label", None)  # it depends on the case whether that is a problem
    problems = [problem for place in places for problem in place.problems]
    return Found([case for place in places for case in place.cases], problems, warnings)


def _look_up(ids: Sequence[str], known: Mapping[str, list[Case]], labelled: bool) -> tuple[list[Case], list[str]]:
    """Look cases up by their ids.

    Args:
        ids: the ids.
        known: cases by their ids, in all folders.
        labelled: whether they need a label.
    Returns: the cases, and what is wrong, a few words each.
    """
    cases = [case for name in ids for case in known.get(name, ())]
    wrong = {
        "no image": [name for name in ids if name not in known],
        "no label": [case["id"] for case in cases if labelled and "label" not in case],
        "two images": [name for name in ids if len(known.get(name, ())) > 1],
    }
    return cases, [f"{what} of {list_some(names)}" for what, names in wrong.items() if names]


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

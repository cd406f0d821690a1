"""Cases: volumes of a dataset folder, found and paired by id."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from engine.data.datasets import DatasetDescription
from engine.runtime.errors import InputError, raise_problems


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


def find_training_cases(root: Path, description: DatasetDescription) -> tuple[list[Case], list[Case]]:
    """Find the training and validation cases of a dataset folder, sorted by id.

    Args:
        root: folder with imagesTr, labelsTr, imagesVal and labelsVal.
        description: description of the dataset.
    Raises:
        InputError: one line per missing or empty folder, image without a label, label without an image, ...
    """
    splits, problems = find_splits(root, description)
    raise_problems(problems)
    return splits["training"], splits["validation"]


def find_test_cases(
    root: str | None, images: str | None, labels: str | None, description: DatasetDescription
) -> list[Case]:
    """Find the cases to predict, sorted by id, with their labels if these exist.

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
        image_folder = Path(root, "imagesTs" if os.path.isdir(os.path.join(root, "imagesTs")) else "imagesVal")
    label_folder = _matching_label_folder(image_folder) if labels is None else Path(labels)
    return pair_cases(image_folder, label_folder, len(description.channels))


def _matching_label_folder(images: Path) -> Path | None:
    folder = Path(os.path.realpath(images.parent if os.path.isfile(images) else images))
    labels = folder.with_name(folder.name.replace("images", "labels", 1))
    return labels if labels != folder and os.path.isdir(labels) else None


def find_splits(
    root: Path, description: DatasetDescription, test: bool = False
) -> tuple[dict[str, list[Case]], list[str]]:
    """Find the cases of a dataset folder by split: those that can be paired, and one line per problem.

    Args:
        root: dataset folder.
        description: description of the dataset.
        test: whether to find test cases as well, which may be missing or have no labels.
    """
    if not os.path.isdir(root):
        return {}, [f"--root: {root} not found, expected a folder with imagesTr, labelsTr, imagesVal and labelsVal"]
    folders = {"training": "Tr", "validation": "Val"}
    if test and os.path.isdir(root / "imagesTs"):
        folders["test"] = "Ts"
    splits, problems = {}, []
    for split, part in folders.items():
        images, labels = root / f"images{part}", root / f"labels{part}"
        labelled = split != "test" or os.path.isdir(labels)
        splits[split], found = find_cases(images, labels if labelled else None, len(description.channels))
        problems += found
    return splits, problems


def pair_cases(images: Path, labels: Path | None, channels: int = 1) -> list[Case]:
    """Find cases as ``find_cases`` does, and raise its problems.

    Raises:
        InputError: one line per problem.
    """
    cases, problems = find_cases(images, labels, channels)
    raise_problems(problems)
    return cases


def find_cases(images: Path, labels: Path | None, channels: int = 1) -> tuple[list[Case], list[str]]:
    """Find the cases of an image folder (or one image file) and pair them with their labels by id.

    An id is a file's name without .nii or .nii.gz. Channels may be separate files, as in nnU-Net (<id>_0000, <id>_0001,
    ...). A single channel is read in this form if the labels are named <id>. Several channels are, unless the labels
    have the same names as the images; then each file is a case, with the channels as its fourth dimension.

    Returns: the cases that can be paired, sorted by id (all images, if there are no labels), and one line per problem:
        missing folders, ids with two files, incomplete channels, images without a label and labels without an image.
    """
    image_files, problems = _volumes(images)
    label_files, label_problems = _volumes(labels) if labels is not None else ({}, [])
    problems += label_problems
    cases, incomplete = _group_channels(image_files, channels, label_files)
    problems += incomplete.values()
    if not label_files:
        return [make_case(name, image) for name, image in sorted(cases.items())], problems
    known = cases.keys() | incomplete.keys()
    if known and (without := sorted(known - label_files.keys())):
        found = ", ".join(without)
        problems.append(f"{images}: found {found} without a label in {labels}, expected one label per image")
    if known and not os.path.isfile(images) and (without := sorted(label_files.keys() - known)):
        found = ", ".join(without)
        problems.append(f"{labels}: found {found} without an image in {images}, expected one image per label")
    paired = sorted(cases.keys() & label_files.keys())
    return [make_case(name, cases[name], label_files[name]) for name in paired], problems


def _volumes(folder: Path) -> tuple[dict[str, str], list[str]]:
    """List the paths of a folder's NIfTI files by id, and the problems; hidden files are skipped."""
    try:
        paths = [folder] if folder.is_file() else sorted(folder.iterdir())
    except FileNotFoundError:
        return {}, [f"{folder}: not found, expected a folder of .nii.gz or .nii files"]
    except OSError as error:
        return {}, [f"{folder}: cannot be read ({error.strerror}), expected a folder of volumes"]
    volumes: dict[str, str] = {}
    problems = []
    for path in paths:
        name = path.name.removesuffix(".gz")
        if path.name.startswith(".") or not name.endswith(".nii"):
            continue
        if (case := name.removesuffix(".nii")) in volumes:
            problems.append(f"{path}: found {case} twice, expected either .nii or .nii.gz")
        volumes.setdefault(case, str(path))
    if not volumes:
        problems.append(f"{folder}: found no volume, expected .nii.gz or .nii files")
    return volumes, problems


def _group_channels(
    volumes: dict[str, str], channels: int, labels: dict[str, str]
) -> tuple[dict[str, str | list[str]], dict[str, str]]:
    """Group channel files: the path or paths of each complete case by id, the problem of each incomplete one by id."""
    groups: dict[str, dict[str, str]] = {}
    for name, path in volumes.items():
        case, channel = re.fullmatch(r"(.*?)(_\d{4})?", name, re.DOTALL).groups(default="")  # type: ignore[union-attr]
        groups.setdefault(case, {})[channel] = path
    expected = [f"_{channel:04d}" for channel in range(channels)]
    complete = {case for case, files in groups.items() if sorted(files) == expected}
    whole = volumes.keys() & labels.keys() if labels else channels == 1
    if whole or not complete:
        return dict(volumes), {}
    incomplete = {}
    for case in groups.keys() - complete:
        found = ", ".join(sorted(Path(path).name for path in groups[case].values()))
        files = f"{channels} files, {case}{expected[0]} to {case}{expected[-1]}"
        incomplete[case] = f"{case}: found {found}, expected {files}"
    cases: dict[str, str | list[str]] = {}
    for case in complete:
        first, *others = sorted(groups[case].values())
        cases[case] = [first, *others] if others else first
    return cases, incomplete

"""From a dataset folder to batches: descriptions of the datasets, cases paired by id, MONAI transform pipelines.

Spacings, intensity windows, crops and augmentations are those of the paper's data preparation and training sections.
"""

import argparse
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureTyped,
    NormalizeIntensityd,
    Orientationd,
    RandShiftIntensityd,
    ScaleIntensityRanged,
    Spacingd,
    Transform,
)
from torch import Tensor

from engine.augmentation import RandRotateScaled
from engine.crops import CountCandidatesd, PadToSized, RandCropByCountsd
from engine.description import DatasetDescription
from engine.errors import InputError, raise_problems
from engine.headers import Case
from engine.prediction import InvertToLabelsd, SaveLabelsd
from engine.reading import LoadVolumed, Pipeline

AMOS_ORGANS = (
    *("background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta"),
    *("postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus"),
)
CT_SPACING = (1.5, 1.5, 2.0)
SOFT_TISSUE = (-125.0, 275.0)  # Hounsfield units

DATASETS = {
    description.name: description
    for description in (
        DatasetDescription("amos", "CT", AMOS_ORGANS, CT_SPACING, SOFT_TISSUE),
        DatasetDescription("amos_mri", "MRI", AMOS_ORGANS[:14], (1.0, 1.0, 1.0), (0.0, 1000.0)),
        DatasetDescription("kits", "CT", ("background", "kidney", "tumor", "cyst"), CT_SPACING, SOFT_TISSUE),
        DatasetDescription("pancreas", "CT", ("background", "pancreas", "tumor"), CT_SPACING, SOFT_TISSUE),
        DatasetDescription("hepatic", "CT", ("background", "hepatic vessel", "tumor"), CT_SPACING, (0.0, 230.0)),
    )
}


def find_description(dataset: str | DatasetDescription) -> DatasetDescription:
    """What stands behind ``--dataset``: a name in ``DATASETS``, the path of a JSON file, or a description as it is."""
    if isinstance(dataset, DatasetDescription):
        return dataset
    if dataset in DATASETS:
        return DATASETS[dataset]
    if Path(dataset).suffix == ".json":
        return DatasetDescription.read(Path(dataset))
    raise InputError(f"--dataset: found {dataset!r}, expected {', '.join(DATASETS)} or the path of a .json file")


def data_loader(args: argparse.Namespace) -> tuple[list[Case], ...]:
    """The cases of a dataset folder, sorted by id.

    Args:
        args: ``root``, ``dataset`` and ``mode``; in test mode also ``images`` and ``labels`` (None for the root's own).
    Returns:
        mode "train": (training cases, validation cases), from imagesTr/labelsTr and imagesVal/labelsVal;
        mode "test": (cases,), from ``images`` or else imagesTs or else imagesVal, with labels where they are found.
    Raises:
        InputError: a line for every missing or empty folder, image without a label, label without an image, ...
    """
    description = find_description(args.dataset)
    if args.mode != "train":
        images, labels = _test_folders(args)
        return (pair_cases(images, labels, len(description.channels)),)
    splits, problems = find_splits(Path(args.root), description)
    raise_problems(problems)
    return splits["training"], splits["validation"]


def find_splits(
    root: Path, description: DatasetDescription, test: bool = False
) -> tuple[dict[str, list[Case]], list[str]]:
    """The cases of a dataset folder by split, those that pair, and a line for everything that does not.

    Args:
        root: the folder.
        description: of the dataset.
        test: look for test cases as well, which may be missing, or have no labels.
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


def _test_folders(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """What to predict (a folder or a file), and the folder of its labels if it has one."""
    if args.images is not None:
        images = Path(args.images)
    elif args.root is None:
        raise InputError("--root: found none, expected a dataset folder, or --images with a folder or a file")
    else:
        root = Path(args.root)
        images = root / ("imagesTs" if os.path.isdir(root / "imagesTs") else "imagesVal")
    if args.labels is not None:
        return images, Path(args.labels)
    folder = Path(os.path.realpath(images.parent if os.path.isfile(images) else images))
    beside = folder.with_name(folder.name.replace("images", "labels", 1))
    return images, beside if beside != folder and os.path.isdir(beside) else None


def pair_cases(images: Path, labels: Path | None, channels: int = 1) -> list[Case]:
    """Cases as by ``find_cases``, where nothing is in the way.

    Raises:
        InputError: a line a problem.
    """
    cases, problems = find_cases(images, labels, channels)
    raise_problems(problems)
    return cases


def find_cases(images: Path, labels: Path | None, channels: int = 1) -> tuple[list[Case], list[str]]:
    """Cases of an image folder (or one image file), each with its label, paired by id, and all that does not pair.

    An id is a file's name without .nii or .nii.gz. Channels may be files of their own, as in nnU-Net (<id>_0000,
    <id>_0001, ...): with one channel where the labels are named <id>, with several unless the labels are named as the
    images; then a file is a case, with the channels as its fourth dimension.

    Returns: the cases that pair, sorted by id (all images, where the labels' folder holds none), and a line for every
        problem: missing folders, ids with two files, incomplete channels, images without a label and the reverse.
    """
    image_files, problems = _volumes(images)
    label_files, of_labels = _volumes(labels) if labels is not None else ({}, [])
    problems += of_labels
    cases, incomplete = _group_channels(image_files, channels, label_files)
    problems += incomplete.values()
    if not label_files:
        return [{"id": name, "image": image} for name, image in sorted(cases.items())], problems
    known = cases.keys() | incomplete.keys()
    if known and (without := sorted(known - label_files.keys())):
        found = ", ".join(without)
        problems.append(f"{images}: found {found} without a label in {labels}, expected one label an image")
    if known and not os.path.isfile(images) and (without := sorted(label_files.keys() - known)):
        found = ", ".join(without)
        problems.append(f"{labels}: found {found} without an image in {images}, expected one image a label")
    paired = sorted(cases.keys() & label_files.keys())
    return [{"id": name, "image": cases[name], "label": label_files[name]} for name in paired], problems


def _volumes(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Id -> path of the NIfTI files of a folder, and the problems; hidden files are not volumes."""
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
) -> tuple[dict[str, Any], dict[str, str]]:
    """Id -> path, or the paths of the channels where they are files of their own; id -> problem where some lack."""
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
    cases = {case: sorted(groups[case].values()) for case in complete}
    return {case: files[0] if channels == 1 else files for case, files in cases.items()}, incomplete


def data_transforms(args: argparse.Namespace) -> tuple[Pipeline, ...]:
    """The pipelines of a dataset: the same deterministic part in training, validation and test.

    Args:
        args: ``dataset`` and ``mode``; in train mode also ``roi_size`` (voxels) and ``crop_sample``.
    Returns:
        mode "train": (training, validation); training gives a list of ``crop_sample`` dictionaries with image
        (channels, *roi_size) and label (1, *roi_size), validation one dictionary with the whole volume;
        mode "test": (test,), with the image alone, a MetaTensor that remembers how to go back to its native grid.
    """
    description = find_description(args.dataset)
    if args.mode == "test":
        return (Pipeline(_deterministic(["image"], description)),)
    keys = ["image", "label"]
    deterministic = _deterministic(keys, description)
    return (
        Pipeline([*deterministic, PadToSized(keys, args.roi_size), *_crops(args, description)]),
        Pipeline(deterministic),
    )


def infer_post_transforms(args: argparse.Namespace, test_transforms: Compose) -> tuple[InvertToLabelsd, SaveLabelsd]:
    """From logits on the resampled grid to labels on the image's own, and from them to <case>_seg.nii.gz.

    Args:
        args: ``output``, the folder to write to.
        test_transforms: the pipeline that made the image.
    Returns: two transforms of dictionaries with "id", "source", "image" and "pred"; a pipeline of both would wrap a
        full disk in a RuntimeError, and keep the writing from going on beside the next case's network.
    """
    return InvertToLabelsd(test_transforms), SaveLabelsd(Path(args.output))


def _deterministic(keys: list[str], description: DatasetDescription) -> list[Transform]:
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    transforms: list[Transform] = [
        LoadVolumed(keys, len(description.classes)),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=description.spacing, mode=modes, dtype=np.float32),
        _intensity(description),
        CropForegroundd(
            keys,
            source_key="image",
            select_fn=AboveMinimum(),
            allow_smaller=True,
            start_coord_key=None,  # the corners of the crop would travel with every case, and nobody reads them
            end_coord_key=None,
        ),
        EnsureTyped("image", dtype=np.float32),
    ]
    return transforms + [EnsureTyped(key, dtype=torch.uint8) for key in keys if key == "label"]


def _intensity(description: DatasetDescription) -> Transform:
    if description.window is None:
        return NormalizeIntensityd("image", channel_wise=True)
    low, high = description.window
    return ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)


def _crops(args: argparse.Namespace, description: DatasetDescription) -> list[Transform]:
    keys = ["image", "label"]
    # Background counts where the image is above 0: the window's lower end, but the mean of a z-score.
    image_key = None if description.window is None else "image"
    return [
        CountCandidatesd(image_key),
        RandCropByCountsd(keys, args.roi_size, args.crop_sample, image_key),
        RandShiftIntensityd("image", offsets=0.10, prob=0.5),
        RandRotateScaled(keys, angle=math.pi / 30, scale=0.1),
        EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=False),
    ]


class AboveMinimum:
    """The voxels (channels, D, H, W) that hold something: those above their channel's minimum; all, if none is."""

    VERSION = 1

    def __call__(self, image: Tensor) -> Tensor:
        above = image > image.amin(dim=(1, 2, 3), keepdim=True)
        return above if above.any() else torch.ones_like(image)

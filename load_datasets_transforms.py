"""From a dataset folder to batches: cases paired by id, and the MONAI transform pipelines.

Spacings, intensity windows, crops and augmentations are those of the paper's data preparation and training sections.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

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

from engine.data.augmentation import RandRotateScaled
from engine.data.cases import Case, find_training_cases
from engine.data.crops import CountCandidatesd, PadToSized, RandCropByCountsd
from engine.data.datasets import DatasetDescription, find_description
from engine.data.load_volume import LoadVolumed, Pipeline
from engine.prediction.post_transforms import InvertToLabelsd, SaveLabelsd


def data_loader(args: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    """(training cases, validation cases) of the folder ``args.root`` with the dataset ``args.dataset``."""
    return find_training_cases(Path(args.root), find_description(args.dataset))


def data_transforms(args: argparse.Namespace) -> tuple[Pipeline, Pipeline]:
    """(training, validation) pipelines of ``args.dataset``, with ``args.crop_sample`` crops of ``args.roi_size``."""
    return training_pipelines(find_description(args.dataset), args.roi_size, args.crop_sample)


def training_pipelines(
    description: DatasetDescription, roi_size: Sequence[int], crop_sample: int
) -> tuple[Pipeline, Pipeline]:
    """The pipelines of training and validation cases, which share their deterministic part with ``test_pipeline``.

    Args:
        description: of the dataset.
        roi_size: (D, H, W) of a crop, voxels.
        crop_sample: crops a case.
    Returns: the training pipeline, which makes a list of ``crop_sample`` dictionaries with image (channels, *roi_size)
        and label (1, *roi_size), and the validation pipeline, which makes one dictionary with the whole volume.
    """
    keys = ["image", "label"]
    # Background counts where the image is above 0: the window's lower end, but the mean of a z-score.
    image_key = None if description.window is None else "image"
    deterministic = _deterministic(keys, description)
    random: list[Transform] = [
        RandCropByCountsd(keys, roi_size, crop_sample, image_key),
        RandShiftIntensityd("image", offsets=0.10, prob=0.5),
        RandRotateScaled(keys, angle=math.pi / 30, scale=0.1),
        EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=False),
    ]
    padded_and_counted = [*deterministic, PadToSized(keys, roi_size), CountCandidatesd(image_key)]
    return Pipeline([*padded_and_counted, *random]), Pipeline(deterministic)


def test_pipeline(description: DatasetDescription) -> Pipeline:
    """The pipeline of cases to predict: a dictionary whose image, a MetaTensor, remembers its native grid."""
    return Pipeline(_deterministic(["image"], description))


def infer_post_transforms(test_transforms: Compose, output: Path) -> tuple[InvertToLabelsd, SaveLabelsd]:
    """From logits on the resampled grid to labels on the image's own, and from them to <case>_seg.nii.gz.

    Args:
        test_transforms: the pipeline that made the image.
        output: the folder to write to.
    Returns: two transforms of dictionaries with "id", "source", "image" and "pred"; a pipeline of both would wrap a
        full disk in a RuntimeError, and keep the writing from going on beside the next case's network.
    """
    return InvertToLabelsd(test_transforms), SaveLabelsd(output)


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


class AboveMinimum:
    """The voxels (channels, D, H, W) that hold something: those above their channel's minimum; all, if none is."""

    VERSION = 1

    def __call__(self, image: Tensor) -> Tensor:
        above = image > image.amin(dim=(1, 2, 3), keepdim=True)
        return above if above.any() else torch.ones_like(image)

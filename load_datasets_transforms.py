"""From a dataset folder to batches: cases paired by id, and the MONAI transform pipelines.

Spacings, intensity windows, crops and augmentations are those of the paper's data preparation and training sections,
unless a flag beyond its recipe asks for others.
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
    Orientationd,
    RandFlipd,
    RandShiftIntensityd,
    Spacingd,
    Transform,
)

from engine.data.augmentation import RandRotateScaled
from engine.data.cases import Case, find_training_cases
from engine.data.crops import CountCandidatesd, CountClassesd, PadToSized, RandCropByClassesd, RandCropByCountsd
from engine.data.datasets import DatasetDescription, find_description
from engine.data.intensity import AboveMinimum, ScaleChannelsd
from engine.data.load_volume import LoadVolumed, Pipeline
from engine.data.split_file import find_split
from engine.data.strong_augmentation import strong_augmentation
from engine.prediction.post_transforms import InOrder, InvertToLabelsd, KeepLargestd, SaveLabelsd, SaveProbabilitiesd
from engine.runtime.arguments import AXES
from engine.runtime.recipe_arguments import AUGMENTATIONS, CROP_BALANCES, sampling_options


def data_loader(args: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    """Find the training and validation cases of ``args.root``, a folder of the dataset ``args.dataset``.

    With ``args.split``, a split file, and ``args.fold``, they are those of a split.
    """
    split = find_split(getattr(args, "split", None), getattr(args, "fold", None))  # the flags are optional in notebooks
    return find_training_cases(Path(args.root), _description(args), split)


def data_transforms(args: argparse.Namespace) -> tuple[Pipeline, Pipeline]:
    """Build the training and validation pipelines from ``args.dataset``, ``args.roi_size`` and ``args.crop_sample``.

    The flags of crops and augmentation beyond the paper's recipe are optional.
    """
    return training_pipelines(_description(args), args.roi_size, args.crop_sample, **sampling_options(args))


def _description(args: argparse.Namespace) -> DatasetDescription:
    return find_description(args.dataset, getattr(args, "fix_affine", False))  # the flag is optional in notebooks


def training_pipelines(
    description: DatasetDescription,
    roi_size: Sequence[int],
    crop_sample: int,
    crop_balance: str = "voxels",
    foreground_share: float = 0.5,
    augmentation: str = "paper",
    mirror: Sequence[str] | None = None,
) -> tuple[Pipeline, Pipeline]:
    """Build the pipelines of training and validation cases; both begin with the transforms of ``test_pipeline``.

    Args:
        description: the dataset's description.
        roi_size: (D, H, W) of a crop, voxels.
        crop_sample: crops per case.
        crop_balance: "voxels" or "classes", among which the centres of crops on foreground are uniform.
        foreground_share: probability that a crop is centred on foreground.
        augmentation: "paper" or "strong".
        mirror: names of ``AXES`` along which a crop is mirrored, each with probability 0.5.
    Returns: the training pipeline, whose output is a list of ``crop_sample`` dictionaries with image
        (channels, *roi_size) and label (1, *roi_size), and the validation pipeline, whose output is one dictionary with
        the whole volume.
    Raises:
        ValueError: another value of ``crop_balance`` or ``augmentation``, or a name in ``mirror`` that is no axis.
    """
    for name, found, expected in (
        ("crop_balance", crop_balance, CROP_BALANCES),
        ("augmentation", augmentation, AUGMENTATIONS),
    ):
        if found not in expected:
            raise ValueError(f"{name}: found {found!r}, expected {' or '.join(expected)}")
    keys = ["image", "label"]
    # Background crops are centred on voxels above 0, which is a window's lower end but the mean of a z-score.
    image_key = None if None in description.windows else "image"
    deterministic = _deterministic(keys, description)
    balanced = crop_balance == "classes"
    count = CountClassesd(image_key, len(description.classes)) if balanced else CountCandidatesd(image_key)
    crop = RandCropByClassesd if balanced else RandCropByCountsd
    random: list[Transform] = [
        crop(keys, roi_size, crop_sample, image_key, foreground_share),
        *(strong_augmentation(keys) if augmentation == "strong" else _paper_augmentation(keys)),
        *(RandFlipd(keys, prob=0.5, spatial_axis=AXES.index(axis)) for axis in mirror or ()),
        EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=False),
    ]
    # The transforms up to the first random one are cached (--cache_dir, --cache_rate).
    return Pipeline([*deterministic, PadToSized(keys, roi_size), count, *random]), Pipeline(deterministic)


def _paper_augmentation(keys: list[str]) -> list[Transform]:
    return [
        RandShiftIntensityd("image", offsets=0.10, prob=0.5),
        RandRotateScaled(keys, angle=math.pi / 30, scale=0.1),
    ]


def test_pipeline(description: DatasetDescription) -> Pipeline:
    """Build the pipeline of cases to predict; its image is a MetaTensor, which remembers its native grid."""
    return Pipeline(_deterministic(["image"], description))


def infer_post_transforms(
    output: Path,
    test_transforms: Compose,
    keep_largest: Sequence[Sequence[int]] = (),
    save_probabilities: str | None = None,
) -> tuple[Transform, Transform]:
    """Build the transforms from logits to a label map on the image's native grid, and from that to <case>_seg.nii.gz.

    Args:
        output: the folder to write to.
        test_transforms: the pipeline that the image went through.
        keep_largest: structures of which only the largest connected component stays, as indices of their classes.
        save_probabilities: the grid on which probabilities are written as well, "native" or "network".
    Returns: two transforms of dictionaries with "id", "source", "image" and "pred". They are not one pipeline because
        the second runs in a thread while the network predicts the next case.
    """
    (load,) = (transform for transform in test_transforms.transforms if isinstance(transform, LoadVolumed))
    first: list[Transform] = [InvertToLabelsd(test_transforms)]
    second: list[Transform] = [SaveLabelsd(output, load.labels)]
    if save_probabilities is not None:
        first.insert(0, SaveProbabilitiesd(output, save_probabilities, test_transforms, load.labels))
    if keep_largest:
        second.insert(0, KeepLargestd(keep_largest))
    return InOrder(first), InOrder(second)


def _deterministic(keys: list[str], description: DatasetDescription) -> list[Transform]:
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    transforms: list[Transform] = [
        LoadVolumed(keys, description.labels, description.nan_is_minimum, description.fix_affine),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=description.spacing, mode=modes, dtype=np.float32),
        ScaleChannelsd(["image"], description.windows),
        CropForegroundd(
            keys,
            source_key="image",
            select_fn=AboveMinimum(),
            allow_smaller=True,
            start_coord_key=None,  # nobody reads the corners of the crop
            end_coord_key=None,
        ),
        EnsureTyped("image", dtype=np.float32),
    ]
    return transforms + [EnsureTyped(key, dtype=torch.uint8) for key in keys if key == "label"]

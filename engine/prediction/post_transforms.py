"""Post-transforms: from logits to a label map on the image's native grid, and from that to a file."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from monai.transforms import Compose, Transform
from torch import Tensor

from engine.data.cases import image_files
from engine.data.datasets import LabelValues
from engine.data.labels import to_file_values
from engine.data.nifti import encode_labels
from engine.prediction.components import keep_largest
from engine.prediction.inversion import class_probabilities, to_native_labels
from engine.prediction.outputs import prediction_path, probability_path, write_large_output, write_output
from engine.prediction.probabilities import native_probabilities, write_npz
from engine.runtime.errors import InputError
from engine.runtime.memory import return_freed_memory
from engine.runtime.warning_lines import merge_warnings


class InOrder(Transform):
    """Transforms one after the other; unlike MONAI's Compose, it raises their errors as they are.

    Args:
        transforms: the transforms.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = transforms

    def __call__(self, data: Any) -> Any:
        for transform in self.transforms:
            data = transform(data)
        return data


class SaveProbabilitiesd(Transform):
    """Write the probabilities of logits "pred" on the grid of "image"; a file of others is kept, with a warning.

    Args:
        output: folder of predictions.
        grid: grid to write them on, "native" or "network".
        transforms: pipeline that produced "image".
        labels: values of the classes in label maps.
    Raises:
        InputError: the logits are not finite.
        DiskError: the file cannot be written.
    """

    def __init__(self, output: Path, grid: str, transforms: Compose, labels: LabelValues) -> None:
        self.output, self.grid, self.transforms, self.labels = output, grid, transforms, labels

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        path = probability_path(self.output, data["id"], self.grid)
        if os.path.exists(path):  # its own were removed before the run
            line = f"{path} is kept, because test_seg.py has not written it (--overwrite renames it)"
            data["warnings"] = merge_warnings([data.get("warnings", {}), {"probabilities": [line]}])
            return data
        with named_errors(data["id"]):
            write_large_output(path, lambda file: self._write(file, data["pred"], data["image"]))
        return data

    def _write(self, file: BinaryIO, logits: Tensor, image: Any) -> None:
        original = image.applied_operations[0]
        if self.grid == "native":
            volumes = native_probabilities(logits, image, self.transforms)
            shape, affine = original["orig_size"], original["extra_info"]["original_affine"]
        else:
            volumes, shape, affine = class_probabilities(logits), image.shape[1:], image.affine
        values = np.array([first for first, *_ in self.labels.classes])
        more = {"values": values, "affine": np.asarray(affine, np.float64)}
        write_npz(file, (len(logits), *shape), volumes, more)


class InvertToLabelsd(Transform):
    """Convert logits "pred" on the grid of "image" to a label map "pred" on the native grid of the image's file.

    The dictionary is updated in place, so that the memory of the logits is freed.

    Args:
        transforms: pipeline that produced "image".
    Shape: pred (classes, D, H, W) -> (X, Y, Z), uint8.
    Raises:
        InputError: the logits are not finite.
    """

    def __init__(self, transforms: Compose) -> None:
        self.transforms = transforms

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        with named_errors(data["id"]):
            labels = to_native_labels(data.pop("pred"), data["image"], self.transforms)
        data["pred"] = labels.numpy()
        return_freed_memory()  # gigabytes of logits, before the next case needs as much
        return data


@contextmanager
def named_errors(case: str) -> Iterator[None]:
    """Raise InputError that names the case if its logits are not finite."""
    try:
        yield
    except FloatingPointError as error:
        raise InputError(f"{case}: {error}; --amp off computes in float32") from error


class KeepLargestd(Transform):
    """Keep the largest connected component of each structure in the label map "pred", in place.

    Args:
        structures: indices of the classes of which each structure consists.
    """

    def __init__(self, structures: Sequence[Sequence[int]]) -> None:
        self.structures = structures

    def __call__(self, data: Any) -> Any:
        keep_largest(data["pred"], self.structures)
        return data


class SaveLabelsd(Transform):
    """Write the label map "pred" as <id>_seg.nii.gz, with the affine and header of the image it was predicted from.

    Args:
        output: folder of predictions.
        labels: values of the classes in the file.
    """

    def __init__(self, output: Path, labels: LabelValues) -> None:
        self.output, self.labels = output, labels

    def __call__(self, data: Any) -> Any:
        voxels = to_file_values(data["pred"], self.labels)
        write_output(prediction_path(self.output, data["id"]), encode_labels(voxels, image_files(data)[0]))
        return data

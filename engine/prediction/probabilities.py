"""Probabilities of all classes as an .npz file, on the network's grid or on the native one, one class at a time.

docs/prediction.md, "Probabilities", describes the file.
"""

import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, BinaryIO

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor

from engine.data.cases import Case
from engine.data.datasets import DatasetDescription
from engine.data.header_checks import read_image_headers
from engine.prediction.inversion import (
    Axis,
    class_probabilities,
    interpolate,
    shared_axes,
    split_axis,
    to_native,
)

STORED = np.float16  # rounds by less than 2.5e-4
LEAST_COVERAGE = 1e-4  # below it a voxel is outside the crop, up to the rounding of coordinates
LEVEL = 1  # of compression: higher ones take several times as long, for a few per cent


def native_probabilities(logits: Tensor, image: MetaTensor, transforms: Compose) -> Iterator[Tensor]:
    """Yield the probability of each class on the native grid; outside the foreground crop all is background.

    Args: as ``to_native_labels``.
    Shape: (classes, D, H, W) -> (X, Y, Z) per class, float32.
    Raises:
        FloatingPointError: the logits are not finite.
    """
    axes = shared_axes(image)
    shape = image.applied_operations[0]["orig_size"]
    coverage = torch.empty(0)
    if axes is None:  # from 1 in the crop to 0 outside
        coverage = to_native(torch.ones(logits.shape[1:]), image, transforms)
    for value, probability in enumerate(class_probabilities(logits)):
        outside = float(value == 0)
        if axes is not None:
            yield interpolate_volume(probability, axes, shape, outside)
        else:
            inverted = to_native(probability, image, transforms) / coverage.clamp(min=LEAST_COVERAGE)
            yield torch.where(coverage > LEAST_COVERAGE, inverted, outside)


def interpolate_volume(volume: Tensor, axes: Sequence[Axis], shape: Sequence[int], outside: float) -> Tensor:
    """Interpolate a volume on the cropped grid at all native voxels, block by block.

    Args:
        volume: volume on the cropped grid.
        axes: axes of that grid.
        shape: shape of the native grid.
        outside: value outside the crop.
    Shape: (D, H, W) -> (X, Y, Z).
    """
    native = torch.full(tuple(shape), outside, device=volume.device)
    turned = native.permute([axis.native for axis in axes])
    for x, y, z in product(*(split_axis(axis, volume.device) for axis in axes)):
        turned[x.native, y.native, z.native] = interpolate(volume[None, x.grid, y.grid, z.grid], x, y, z)[0]
    return native


def write_npz(file: BinaryIO, shape: Sequence[int], volumes: Iterable[Tensor], more: dict[str, NDArray[Any]]) -> None:
    """Write a compressed .npz file as NumPy does, with "probabilities" that are computed while they are written.

    Args:
        file: open binary file.
        shape: (classes, X, Y, Z) of the probabilities.
        volumes: probabilities of each class (X, Y, Z).
        more: further arrays by name.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
        for name, array in more.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        with archive.open("probabilities.npy", "w", force_zip64=True) as entry:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(STORED)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(entry, {**header, "shape": tuple(shape)})
            for volume in volumes:
                entry.write(np.ascontiguousarray(volume.cpu().numpy().astype(STORED)).data)


def estimate_bytes(cases: Sequence[Case], grid: str, description: DatasetDescription) -> int:
    """Compute how many bytes the probabilities of some cases take before compression, from the headers of the images.

    On the network's grid, which is cropped to the foreground, they may be fewer. Images whose headers have a problem
    count as 0.

    Args:
        cases: cases to predict.
        grid: "native" or "network".
        description: description of the dataset.
    """
    voxels = 0
    for case in cases:
        header, *_ = read_image_headers(case, description)
        if header.problems or header.grid is None:  # reported when the case is predicted
            continue
        turned = header.grid.turn_to_ras()
        voxels += math.prod(turned.shape if grid == "native" else turned.resampled_shape(description.spacing))
    return voxels * len(description.classes) * np.dtype(STORED).itemsize

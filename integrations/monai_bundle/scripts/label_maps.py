"""From logits to a label map on the grid of the image's file, and from that to a file."""

from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Transform

from engine.data.datasets import LabelValues
from engine.data.labels import to_file_values
from engine.data.nifti import encode_labels
from engine.prediction.inversion import to_native_labels
from engine.runtime.errors import InputError
from engine.runtime.files import write_whole

from .cases import label_path


class ToNativeLabelsd(Transform):
    """Convert logits "pred" to class indices on the grid of the file of "image".

    MONAI's Invertd with an argmax needs memory for the probabilities of all classes on that grid.

    Args:
        transforms: pipeline that produced "image".
    Shape: pred (classes, D, H, W) -> (1, X, Y, Z), uint8, with the affine and other meta data of the image's file.
    Raises:
        InputError: the logits are not finite.
    """

    def __init__(self, transforms: Compose) -> None:
        self.transforms = transforms

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        image: MetaTensor = data["image"]
        logits = data["pred"].as_subclass(torch.Tensor)
        try:
            labels = to_native_labels(logits, image, self.transforms)
        except FloatingPointError as error:
            raise InputError(f"{data.get('grid', 'image')}: {error}; amp off computes in float32") from error
        affine = image.applied_operations[0]["extra_info"]["original_affine"]
        meta = {**image.meta, "affine": torch.as_tensor(affine), "spatial_shape": tuple(labels.shape)}
        return {**data, "pred": MetaTensor(labels[None], meta=meta)}


class SaveLabelsd(Transform):
    """Write class indices "pred" as <id>_seg.nii.gz, with the values of the dataset and the header of "grid", a file.

    MONAI's SaveImaged writes a header of its own. A file is complete or absent, whenever the process is killed.

    Args:
        output_dir: folder of label maps.
        labels: values of the classes.
    Shape: pred (1, X, Y, Z), uint8.
    """

    def __init__(self, output_dir: str, labels: LabelValues) -> None:
        self.output, self.labels = Path(output_dir), labels

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        voxels = to_file_values(data["pred"].numpy()[0], self.labels)
        content = encode_labels(voxels, data["grid"])
        self.output.mkdir(parents=True, exist_ok=True)
        write_whole(label_path(self.output, data["id"]), lambda file: file.write(content))
        return data

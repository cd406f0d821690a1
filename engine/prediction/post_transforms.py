"""Post-transforms: from logits to a label map on the image's native grid, and from that to a file."""

from pathlib import Path
from typing import Any

from monai.transforms import Compose, Transform

from engine.data.cases import image_files
from engine.data.datasets import LabelValues
from engine.data.labels import to_file_values
from engine.data.nifti import encode_labels
from engine.prediction.inversion import to_native_labels
from engine.prediction.outputs import prediction_path, write_output
from engine.runtime.errors import InputError
from engine.runtime.memory import return_freed_memory


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
        try:
            labels = to_native_labels(data.pop("pred"), data["image"], self.transforms)
        except FloatingPointError as error:
            raise InputError(f"{data['id']}: {error}; --amp off computes in float32") from error
        data["pred"] = labels.numpy()
        return_freed_memory()  # gigabytes of logits, before the next case needs as much
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

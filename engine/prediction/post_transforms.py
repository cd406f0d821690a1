"""Post-transforms: from logits to a label map on the image's native grid, and from that to a file."""

from pathlib import Path
from typing import Any

from monai.transforms import Compose, Transform

from engine.data.cases import image_files
from engine.data.nifti import save_labels
from engine.prediction.finished import prediction_path
from engine.prediction.inversion import to_native_labels
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
    """

    def __init__(self, output: Path) -> None:
        self.output = output

    def __call__(self, data: Any) -> Any:
        save_labels(data["pred"], image_files(data)[0], prediction_path(self.output, data["id"]))
        return data

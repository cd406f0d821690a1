"""Meta data of a loaded image."""

from typing import Any

from monai.transforms import Transform


class ForgetFiled(Transform):
    """Remove the file's name from the meta data of "image".

    If it is a .nii or .nii.gz file, MONAI's Spacingd (1.6.1) takes every entry whose name begins with "image_" for a
    dictionary of meta data, and fails on MONAI Label's "image_path".
    """

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        data["image"].meta.pop("filename_or_obj", None)
        return data

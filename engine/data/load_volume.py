"""Loading of volumes in pipelines, with broken files reported as user mistakes: one line that names the file."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import NibabelReader
from monai.transforms import Compose, LoadImage, MapTransform
from monai.utils import ensure_tuple

from engine.data.datasets import LabelValues
from engine.data.intensity_checks import check_intensities, fill_nan
from engine.data.labels import to_classes
from engine.data.nifti import UNREADABLE, open_checked, read_voxels, unreadable
from engine.runtime.errors import InputError, raise_problems


class Pipeline(Compose):
    """MONAI's Compose, except that an InputError of one of its transforms is raised as it is, not wrapped.

    Args: as Compose.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError as error:
            if (cause := input_error_of(error)) is None:
                raise
            raise cause from None


def input_error_of(error: BaseException | None) -> InputError | None:
    """Find the InputError that another error was raised from, such as MONAI's about its transforms, or None."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


class HeaderReader(NibabelReader):
    """MONAI's reader with the affine of ``open_volume``; several channels have the affine of the first.

    The position of a volume thus agrees with the header checks and with the predictions that are written.
    """

    VERSION = 2

    def read(self, data: Any, **_: Any) -> Any:
        """Open one file, or several."""
        self.filenames = ensure_tuple(data)
        first, *others = (open_checked(str(name)) for name in self.filenames)
        return [first, *(type(other)(other.dataobj, first.affine) for other in others)] if others else first


class LoadVolumed(MapTransform):
    """Read NIfTI files by MONAI's LoadImage, convert labels to class indices, and refuse voxels that corrupt training.

    Args:
        keys: entries with one path, or one per channel; "label" holds a label map, others hold images.
        labels: values of the classes in label maps.
        nan_is_minimum: whether NaN in an image stands for the minimum of its channel.
        fix_affine: whether the label has the affine of the image, whatever its own header says.
    Shape: (X, Y, Z) or (X, Y, Z, channels) in a file -> (channels, X, Y, Z), float32.
    Raises:
        InputError: a file cannot be read or has invalid voxels; names the file.
    """

    VERSION = 2

    def __init__(self, keys: Sequence[str], labels: LabelValues, nan_is_minimum: bool, fix_affine: bool) -> None:
        super().__init__(keys)
        self.labels, self.nan_is_minimum, self.fix_affine = labels, nan_is_minimum, fix_affine
        self.load = LoadImage(ensure_channel_first=True)
        self.reader = HeaderReader  # one per volume: it stores its files, and several threads load at the same time

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        loaded = {str(key): self._load(str(key), data[str(key)]) for key in self.keys}
        if self.fix_affine and "label" in loaded:
            loaded["label"].affine = loaded["image"].affine
        return {**data, **loaded}

    def _load(self, key: str, source: str | Sequence[str]) -> Any:
        paths = [source] if isinstance(source, str) else source
        try:
            volume = self.load(source, self.reader())  # passed here, since LoadImage hides errors of its own reader
        except UNREADABLE as error:
            for path in paths:
                read_voxels(path)  # raises an error that names the broken file
            raise unreadable(", ".join(paths), error) from error
        if key == "label":
            classes, found = to_classes(volume.numpy()[0], self.labels)
            volume.copy_(torch.from_numpy(classes)[None])
        else:
            found = check_intensities(list(volume.numpy()), self.nan_is_minimum)
            for channel in volume.numpy() if self.nan_is_minimum and not found else ():
                fill_nan(channel)
        raise_problems([f"{', '.join(paths)}: {problem}" for problem in found])
        return volume

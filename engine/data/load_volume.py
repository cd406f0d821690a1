"""Loading of volumes in pipelines, with broken files reported as user mistakes: one line that names the file."""

from collections.abc import Sequence
from typing import Any

from monai.data import NibabelReader
from monai.transforms import Compose, LoadImage, MapTransform
from monai.utils import ensure_tuple

from engine.data.case_checks import check_classes, check_intensities
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
            cause = error.__cause__
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None


class HeaderReader(NibabelReader):
    """MONAI's reader with nibabel's affine: MONAI's own uses the qform if the sform contradicts pixdim.

    The position of a volume thus agrees with the header checks and with the predictions that are written.
    """

    VERSION = 1

    def read(self, data: Any, **_: Any) -> Any:
        """Open one file, or several."""
        self.filenames = ensure_tuple(data)
        images = [open_checked(str(name)) for name in self.filenames]
        return images if len(images) > 1 else images[0]


class LoadVolumed(MapTransform):
    """Read NIfTI files by MONAI's LoadImage, and refuse voxels that would corrupt training.

    Args:
        keys: entries with one path, or one per channel; values of "label" must be classes, those of others finite.
        classes: number of classes.
    Shape: (X, Y, Z) or (X, Y, Z, channels) in a file -> (channels, X, Y, Z), float32.
    Raises:
        InputError: a file cannot be read or has invalid voxels; names the file.
    """

    VERSION = 1

    def __init__(self, keys: Sequence[str], classes: int) -> None:
        super().__init__(keys)
        self.classes = classes
        self.load = LoadImage(ensure_channel_first=True)
        self.reader = HeaderReader  # one per volume: it stores its files, and several threads load at the same time

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, **{str(key): self._load(str(key), data[str(key)]) for key in self.keys}}

    def _load(self, key: str, source: str | Sequence[str]) -> Any:
        paths = [source] if isinstance(source, str) else source
        try:
            volume = self.load(source, self.reader())  # passed here, since LoadImage hides errors of its own reader
        except UNREADABLE as error:
            for path in paths:
                read_voxels(path)  # raises an error that names the broken file
            raise unreadable(", ".join(paths), error) from error
        voxels = volume.numpy()
        found = check_classes(voxels, self.classes) if key == "label" else check_intensities(voxels)
        raise_problems([f"{', '.join(paths)}: {problem}" for problem in found])
        return volume

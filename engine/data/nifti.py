"""Reading and writing of NIfTI files on their native grid."""

import gzip
import logging
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from engine.runtime.errors import InputError
from engine.runtime.files import write_whole

UNREADABLE = (OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError)

# nibabel logs what it repairs and what it refuses; here a refusal is an InputError, which names the file.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


def open_volume(path: str) -> nib.Nifti1Image:
    """Open a NIfTI-1 or NIfTI-2 file; its voxels are read on access.

    Raises:
        InputError: the file cannot be read, or has another format.
    """
    try:
        with np.errstate(all="ignore"):
            image = nib.load(path)
            if not isinstance(image, nib.Nifti1Image):
                raise ImageFileError("not a NIfTI file")
            return image
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def open_checked(path: str) -> nib.Nifti1Image:
    """Open a file and verify its checksum, which nibabel does not: a .gz file is read completely into memory.

    Raises:
        InputError: the file cannot be read, has another format, or is damaged. Only .gz files have a checksum.
    """
    image = open_volume(path)
    if not path.endswith(".gz"):
        return image
    try:
        with np.errstate(all="ignore"), gzip.open(path) as file:
            return type(image).from_bytes(file.read())
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def read_voxels(path: str) -> NDArray[Any]:
    """Read the voxels of a file, scaled as its header specifies.

    Raises:
        InputError: the file cannot be read, ends early, or does not match its checksum.
    """
    image = open_checked(path)
    try:
        with np.errstate(all="ignore"):
            return np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> InputError:
    """Make the error for a file that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}), expected a whole NIfTI file")


def save_labels(labels: NDArray[np.uint8], like: str, path: Path) -> None:
    """Write a label map atomically, with the affine, codes and units of another file.

    Args:
        labels: label map (X, Y, Z) on the grid of ``like``.
        like: file of the image that was segmented.
        path: file to write, .nii.gz.
    """
    native = open_volume(like)
    image = type(native)(labels, native.affine, native.header.copy(), dtype=np.uint8)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"] = image.header["cal_max"] = 0  # the image's display window does not apply to labels
    write_whole(path, lambda file: file.write(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)))


def turn_to_ras(volume: NDArray[Any], affine: NDArray[np.floating]) -> NDArray[Any]:
    """Flip and permute the axes of a volume (X, Y, Z) to run right, anterior, superior as closely as possible."""
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(volume, affine, dtype=volume.dtype)).dataobj)

"""NIfTI files as they are on disk, on their own grid: everything that opens or writes one."""

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

# nibabel prints what it mends and what it refuses: the latter is told here, in a line that names the file.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


def load_nifti(path: str) -> nib.Nifti1Image:
    """Open a NIfTI-1 or NIfTI-2 file; its voxels are read when they are asked for.

    Raises:
        ImageFileError: another format.
    """
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise ImageFileError("not a NIfTI file")
    return image


def load_checked(path: str) -> nib.Nifti1Image:
    """As ``load_nifti``; a .gz file is read to its end, where its checksum stands, and kept: nibabel never compares it.

    Raises:
        ImageFileError: another format.
        OSError, EOFError, zlib.error: a .gz file is damaged. Others have no checksum.
    """
    image = load_nifti(path)
    if not path.endswith(".gz"):
        return image
    with gzip.open(path) as file:
        return type(image).from_bytes(file.read())


def open_volume(path: str) -> nib.Nifti1Image:
    """Open a NIfTI file; its voxels are read when they are asked for.

    Raises:
        InputError: it cannot be read, or has another format.
    """
    try:
        with np.errstate(all="ignore"):
            return load_nifti(path)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> InputError:
    """What to tell of a file that could not be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}), expected a whole NIfTI file")


def read_voxels(path: str) -> NDArray[Any]:
    """The voxels of a file, scaled as its header says.

    Raises:
        InputError: it cannot be read, ends early, or is not what its checksum was made of.
    """
    try:
        with np.errstate(all="ignore"):
            return np.asanyarray(load_checked(path).dataobj)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def read_labels(path: str) -> NDArray[np.uint8]:
    """A label map (X, Y, Z); float files hold whole numbers too."""
    return np.asanyarray(load_nifti(path).dataobj).astype(np.uint8)


def save_labels(labels: NDArray[np.uint8], like: str, path: Path) -> None:
    """Write a label map with the affine, codes and units of another file, whole or not at all.

    Args:
        labels: (X, Y, Z) on the grid of ``like``.
        like: the image that was segmented.
        path: file to write, .nii.gz.
    """
    native = load_nifti(like)
    image = type(native)(labels, native.affine, native.header.copy(), dtype=np.uint8)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"] = image.header["cal_max"] = 0  # the image's display window says nothing of labels
    write_whole(path, lambda file: file.write(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)))


def turn_to_ras(volume: NDArray[Any], affine: NDArray[np.floating]) -> NDArray[Any]:
    """A volume (X, Y, Z) with its axes flipped and permuted to run right, anterior, superior as closely as they can."""
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(volume, affine, dtype=volume.dtype)).dataobj)

"""Reading and writing of NIfTI files.

What a file says about the position of its voxels is read by one rule, here (docs/data.md, "Geometry").
"""

import gzip
import logging
import zlib
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from engine.runtime.errors import InputError

UNREADABLE = (OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError)
UNITS = {1: "metres", 3: "microns"}  # by their code in xyzt_units; as for ITK, all others count as mm
GZIP = b"\x1f\x8b"  # first bytes of a compressed file
MM = {"mm": 1.0, "metres": 1000.0, "microns": 0.001}

# nibabel logs what it repairs and what it refuses; here a refusal is an InputError, which names the file.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


class _NormalisedQuaternion:
    """Header that divides a quaternion longer than 1 by its length, as ITK does; nibabel refuses it."""

    def get_qform_quaternion(self: Any) -> Any:
        vector = np.array([self[f"quatern_{axis}"] for axis in "bcd"], np.float64)
        length = np.linalg.norm(vector)
        return [0, *vector / length] if length > 1 else nib.Nifti1Header.get_qform_quaternion(self)


class _Nifti1Header(_NormalisedQuaternion, nib.Nifti1Header):
    pass


class _Nifti2Header(_NormalisedQuaternion, nib.Nifti2Header):
    pass


class _Nifti1Image(nib.Nifti1Image):
    header_class = _Nifti1Header


class _Nifti2Image(nib.Nifti2Image):
    header_class = _Nifti2Header


KINDS = (_Nifti1Image, _Nifti2Image)
LONGEST_HEADER = max(kind.header_class.sizeof_hdr for kind in KINDS)


def tell_kind(start: bytes) -> type[nib.Nifti1Image]:
    """Tell NIfTI-1 from NIfTI-2 by the first ``LONGEST_HEADER`` bytes of a file, unpacked.

    Raises:
        ImageFileError: it is neither.
    """
    for kind in KINDS:
        if kind.header_class.may_contain_header(start):
            return kind
    raise ImageFileError("not a NIfTI file" if start else "it is empty")


def open_volume(path: str) -> nib.Nifti1Image:
    """Open a NIfTI-1 or NIfTI-2 file; its voxels are read on access.

    Axes of length 1 after the third are dropped, and the affine is in mm, whatever the file's unit.

    Raises:
        InputError: the file cannot be read, or has another format.
    """
    try:
        with np.errstate(all="ignore"):
            return _simplify(_open_file(path))
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def open_checked(path: str) -> nib.Nifti1Image:
    """Open a file and verify its checksum, which nibabel does not: a .gz file is read completely into memory.

    Raises:
        InputError: the file cannot be read, has another format, or is damaged. Only .gz files have a checksum.
    """
    try:
        with np.errstate(all="ignore"):
            return _simplify(_open_file(path, whole=True))
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _open_file(path: str, whole: bool = False) -> nib.Nifti1Image:
    """Open a file, compressed or not, whatever its name says; it is opened once, which counts on network disks.

    Args:
        path: path of the file.
        whole: whether the voxels of a compressed file are read at once, and not on access.
    """
    with open(path, "rb") as raw:
        compressed = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if compressed else raw
        kind = tell_kind(file.read(LONGEST_HEADER))
        file.seek(0)
        # On access nibabel trusts the name.
        if (whole and compressed) or compressed != path.lower().endswith(".gz"):
            return kind.from_bytes(file.read())
        header = kind.header_class.from_fileobj(file)
    image = kind(kind.ImageArrayProxy(path, header.copy()), None, header)
    image._affine = header.get_best_affine()  # as nibabel does: given to the constructor, NaN would change the header
    return image


def _simplify(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an image without axes of length 1 after the third, and with its affine in mm."""
    shape = (*image.shape[:3], *(side for side in image.shape[3:] if side != 1))
    scale = MM[unit_of(image)]
    if shape == image.shape and scale == 1:
        return image
    voxels: Any = image.dataobj
    return type(image)(voxels.reshape(shape), np.diag([scale, scale, scale, 1]) @ image.affine, image.header)


def unit_of(image: nib.Nifti1Image) -> str:
    """Return the unit in which the header of an image's file gives lengths, a key of ``MM``."""
    return UNITS.get(int(image.header["xyzt_units"]) & 7, "mm")


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


def encode_labels(labels: NDArray[Any], like: str) -> bytes:
    """Encode a label map as a .nii.gz file with the shape, affine, codes and units of another file.

    Args:
        labels: label map (X, Y, Z) on the grid of ``like``.
        like: file of the image that was segmented; of its axes after the third, those of length 1 are kept.
    """
    native = _open_file(like)
    shape = native.shape if native.shape[3:].count(1) == len(native.shape[3:]) else native.shape[:3]
    image = type(native)(labels.reshape(shape), native.affine, native.header.copy(), dtype=labels.dtype)
    # A quaternion that was too long is written with the length 1; any other stays the same.
    for axis, value in zip("bcd", image.header.get_qform_quaternion()[1:], strict=True):
        image.header[f"quatern_{axis}"] = value
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"] = image.header["cal_max"] = 0  # the image's display window does not apply to labels
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def turn_to_ras(volume: NDArray[Any], affine: NDArray[np.floating]) -> NDArray[Any]:
    """Flip and permute the axes of a volume (X, Y, Z) to run right, anterior, superior as closely as possible."""
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(volume, affine, dtype=volume.dtype)).dataobj)

"""Check of a member of an archive: a whole NIfTI file, to its last byte."""

import gzip
import math
from typing import BinaryIO

from engine.archives.sources import DAMAGE, Member
from engine.data.nifti import LONGEST_HEADER, UNREADABLE, tell_kind
from engine.runtime.errors import InputError

CHUNK = 2**20  # bytes


def check_whole(member: Member) -> None:
    """Read a NIfTI file to its end, which verifies its checksums, and compare its size with its header.

    Raises:
        InputError: the file is damaged, cut off, or of another format.
    """
    try:
        packed = member.is_compressed()
        with member.open() as file:
            if packed:
                with gzip.open(file) as unpacked:
                    _check_size(unpacked)  # type: ignore[arg-type]
                _read_on(file)
            else:
                _check_size(file)
    except (*UNREADABLE, *DAMAGE) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        again = "delete it and fetch it again" if member.path is not None else "fetch the archive again"
        raise InputError(f"{member}: cannot be read ({reason}), expected a whole NIfTI file; {again}") from error


def _check_size(file: BinaryIO) -> None:
    """Raise an error, one of ``UNREADABLE``, if a file ends before the voxels that its header declares."""
    start = file.read(LONGEST_HEADER)
    header_class = tell_kind(start).header_class
    header = header_class(start[: header_class.sizeof_hdr])
    declared = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize + header.get_data_offset()
    found = len(start) + _read_on(file)
    if found < declared:
        raise ValueError(f"it has {found} of the {declared:.0f} bytes that its header declares")


def _read_on(file: BinaryIO) -> int:
    """Read a file to its end; return the number of bytes."""
    return sum(map(len, iter(lambda: file.read(CHUNK), b"")))

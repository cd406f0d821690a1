"""Writing so that a file is whole or not there."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from engine.runtime.errors import DiskError, InputError

# What a training run keeps in its folder.
LAST, PREVIOUS, BEST = "last_checkpoint.pth", "previous_checkpoint.pth", "best_metric_model.pth"
DAMAGED = "damaged_checkpoint.pth"
DIGEST_BYTES = 8
PARTIAL = ".part"


def write_whole(
    path: Path, write: Callable[[BinaryIO], object], keep: Path | None = None, shared: bool = False
) -> None:
    """Write aside, flush to the disk, rename: a kill at any moment leaves the old file or the new one.

    Args:
        path: the file.
        write: fills an open binary file.
        keep: another name in the same folder, for the old file to have from then on. A kill in between leaves the old
            file alone, under this name.
        shared: whether other processes may be writing the same file. What a kill leaves of it then has a name of its
            own, where otherwise the next write takes its place.
    Raises:
        DiskError: it cannot be written, on a full disk for instance; what was at ``path`` before is still whole,
            there or, if the last rename failed, at ``keep``.
        InputError: its name is too long.
    """
    aside = name_aside(path) if shared else path.with_name(f".{path.name}{PARTIAL}")
    try:
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(aside, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save's own error hides it
        if not isinstance(cause, OSError):
            raise
        if cause.errno == errno.ENAMETOOLONG:
            raise InputError(f"{path}: cannot be written, expected a shorter name") from error
        reason = f"cannot be written ({cause.strerror}), expected a disk with space"
        raise DiskError(f"{path}: {reason}; an older file of that name is still whole") from error
    finally:
        with suppress(OSError):  # a disk that has become read-only keeps it
            aside.unlink()


def name_aside(path: Path) -> Path:
    """A name beside ``path`` that nobody else has, and that nobody reads."""
    return path.with_name(f".{uuid4().hex}{PARTIAL}")


def _flush_folder(folder: Path) -> None:
    """Names are a folder's content: without this a power cut could take back a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """Write a text file whole or not at all; names that are no text have their bytes spelt out."""
    write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")), shared=shared)


def file_state(path: str) -> list[int]:
    """Size in bytes and modification time in ns of a file: while they stay, so does what it holds."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def digest_file(path: str) -> str:
    """A hash of what a file holds; OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def combine_digests(digests: Iterable[str]) -> str:
    """One hash of several."""
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for digest in digests:
        whole.update(bytes.fromhex(digest))
    return whole.hexdigest()


def make_output_folder(path: Path) -> None:
    """Create ``path`` and make sure that files can be written there; InputError naming --output otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"--output: {path} cannot be written to ({error.strerror}), expected a folder") from error

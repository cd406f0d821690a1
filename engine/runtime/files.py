"""Atomic writes, so that a file is either complete or absent; file digests and the names of checkpoints."""

import csv
import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from engine.runtime.errors import NOT_WRITABLE, DiskError, InputError
from networks.whole_files import PARTIAL, complete_or_absent, flush

# Checkpoints in the folder of a training run.
LAST, PREVIOUS, BEST = "last_checkpoint.pth", "previous_checkpoint.pth", "best_metric_model.pth"
DAMAGED = "damaged_checkpoint.pth"
ARGUMENTS = "args.json"
VERSIONS = "versions.json"
DIGEST_BYTES = 8


def write_whole(
    path: Path, write: Callable[[BinaryIO], object], keep: Path | None = None, shared: bool = False
) -> None:
    """Write a temporary file, flush it to the disk and rename it: a kill leaves either the old file or the new one.

    Args:
        path: the file to write.
        write: function that fills an open binary file.
        keep: another name in the same folder, to which the old file is renamed first. A kill between the two renames
            leaves only the old file, under this name.
        shared: whether other processes may write the same file at the same time. The temporary file then has a unique
            name, and stays after a kill; otherwise the next write overwrites it.
    Raises:
        DiskError: the file cannot be written, for instance on a full disk; an older file is still intact, at ``path``
            or, if the last rename failed, at ``keep``.
        InputError: the file's name is too long.
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
        flush(path.parent)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save's own error hides it
        if not isinstance(cause, OSError):
            raise
        if cause.errno == errno.ENAMETOOLONG:
            raise InputError(f"{path}: cannot be written, expected a shorter name") from error
        reason = f"cannot be written ({cause.strerror}), expected a disk with space"
        raise DiskError(f"{path}: {reason}; an older file of that name is still whole") from error
    finally:
        with suppress(OSError):  # impossible on a disk that has become read-only
            aside.unlink()


@contextmanager
def new_output(path: Path, flag: str) -> Iterator[Path]:
    """Yield another path for a new file or folder, which is ``complete_or_absent`` and replaces nothing.

    Args:
        path: file or folder to create.
        flag: flag that named it, for messages.
    Raises:
        InputError: there is something of that name, or a name on the way is no folder.
        DiskError: it cannot be written.
    """
    check_absent(path, flag)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete_or_absent(path) as aside:
            yield aside
    except InputError:
        raise
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            raise DiskError(
                f"{flag}: {path} cannot be written ({error.strerror}), expected a disk with space"
            ) from error
        raise InputError(f"{flag}: {path} cannot be written ({error.strerror}), expected another place") from error


def check_absent(path: Path, flag: str) -> None:
    """Raise InputError if there is something at ``path``, named by ``flag``."""
    if os.path.lexists(path):
        raise InputError(f"{flag}: {path} exists, expected a new name")


def name_aside(path: Path) -> Path:
    """Make a unique name for a temporary file or folder next to ``path``."""
    return path.with_name(f".{uuid4().hex}{PARTIAL}")


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """Write a text file atomically; the bytes of file names that are not valid text are escaped."""
    write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")), shared=shared)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, atomically; None becomes an empty cell."""
    write_text(path, format_csv(header, rows))


def format_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a table as CSV; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table, one dictionary of texts per row.

    Raises:
        InputError: the file cannot be read, or a row has more or fewer cells than the header.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        return [dict(zip(header, row, strict=True)) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}), expected a CSV file") from error


def file_state(path: str) -> list[int]:
    """Return a file's size in bytes and modification time in ns; while both are unchanged, so is its content."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def digest_file(path: str) -> str:
    """Hash the content of a file; OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def combine_digests(digests: Iterable[str]) -> str:
    """Combine several hashes into one."""
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for digest in digests:
        whole.update(bytes.fromhex(digest))
    return whole.hexdigest()


def make_output_folder(path: Path, flag: str = "--output") -> None:
    """Create a folder and make sure that it is writable; InputError naming its flag otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{flag}: {path} cannot be written to ({error.strerror}), expected a folder") from error

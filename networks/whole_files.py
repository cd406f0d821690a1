"""Files and folders that are complete or absent, whenever the process is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".part"


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Yield another path beside ``path`` for a file or folder, and rename it at the end; remove it after an error.

    A killed process leaves it, and the next one with the same ``path`` removes it.

    Raises:
        OSError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}{PARTIAL}")
    _remove(aside)
    try:
        yield aside
        for part in (aside, *aside.rglob("*")):
            flush(part)
        os.replace(aside, path)
        flush(path.parent)
    finally:
        _remove(aside)


def flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk: without this a power cut could undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()

"""Names of the files that prediction writes, and the record of what it has written."""

import hashlib
import json
import os
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from engine.data.cases import Case, case_files
from engine.data.folders import PREDICTION_ENDING, PROBABILITY_ENDINGS
from engine.runtime.distributed import process_rank
from engine.runtime.errors import DiskError, InputError, raise_problems
from engine.runtime.files import digest_file, write_whole
from engine.runtime.wording import list_some

JOURNAL = ".written_{}.jsonl"  # one per process, in the folder of predictions


def prediction_path(folder: Path, case: str) -> Path:
    """Return the path of a case's label map."""
    return folder / f"{case}{PREDICTION_ENDING}"


def picture_path(folder: Path, case: str) -> Path:
    """Return the path of a case's picture."""
    return folder / f"{case}.png"


def probability_path(folder: Path, case: str, grid: str) -> Path:
    """Return the path of a case's probabilities on a grid, "native" or "network"."""
    return folder / f"{case}{PROBABILITY_ENDINGS[grid]}"


def companion_paths(folder: Path, case: str) -> list[Path]:
    """List the paths of what may be beside a case's label map: its picture and its probabilities."""
    return [picture_path(folder, case), *(probability_path(folder, case, grid) for grid in PROBABILITY_ENDINGS)]


def check_outputs(cases: Sequence[Case], folder: Path) -> None:
    """Make sure that no prediction would replace an image, a label, or another prediction of the same run.

    Raises:
        InputError: one line for each file that would be replaced; ids that the disk does not tell apart.
    """
    inputs = {os.path.realpath(path): path for case in cases for path in case_files(case)}
    written = (os.path.realpath(prediction_path(folder, case["id"])) for case in cases)
    replaced = [inputs[path] for path in written if path in inputs]
    raise_problems([f"--output: {path} would be replaced, expected another folder" for path in replaced])
    alike = defaultdict(list)
    for case in cases:
        alike[unicodedata.normalize("NFC", case["id"]).casefold()].append(case["id"])
    if (shared := [" and ".join(names) for names in alike.values() if len(names) > 1]) and not tells_case(folder):
        raise InputError(f"--output: {folder} has one file for {list_some(shared)}, expected a disk that tells case")


def tells_case(folder: Path) -> bool:
    """Check that the disk of a folder tells small letters from capitals."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".case_") as file:
        return not os.path.exists(folder / os.path.basename(file.name).swapcase())


def write_output(path: Path, content: bytes) -> None:
    """Write a label map or a picture atomically, and note its digest first, so that no kill leaves it unknown.

    Raises:
        DiskError: a file cannot be written.
    """
    _note_digest(path, hashlib.blake2b(content).hexdigest())
    write_whole(path, lambda file: file.write(content))


def write_large_output(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that does not fit in memory as ``write_output`` does; its digest is noted before it has its name.

    Args:
        path: the file.
        write: function that fills an open binary file.
    Raises:
        DiskError: a file cannot be written.
    """

    def write_and_note(file: BinaryIO) -> None:
        write(file)
        file.flush()
        _note_digest(path, digest_file(file.name))

    write_whole(path, write_and_note)


def _note_digest(path: Path, digest: str) -> None:
    """Add a line with the digest of a file to this process's journal."""
    line = json.dumps({"file": path.name, "digest": digest})
    journal = path.parent / JOURNAL.format(process_rank())
    try:
        with open(journal, "a", encoding="utf-8") as file:
            file.write(f"\n{line}")  # the last line may be half of one, if its writer was killed
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"{journal}: cannot be written ({error.strerror}), expected a disk with space") from error


def read_journals(folder: Path) -> dict[str, list[str]]:
    """Read the digests of what was written to a folder since its settings were, by the names of the files."""
    written: dict[str, list[str]] = {}
    for path in sorted(folder.glob(JOURNAL.format("*"))):
        with suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError, KeyError):  # the last line of a process that was killed
                    values = json.loads(line)
                    written.setdefault(str(values["file"]), []).append(str(values["digest"]))
    return written


def remove_journals(folder: Path) -> None:
    """Remove the journals of all processes, once they are part of the settings."""
    for path in folder.glob(JOURNAL.format("*")):
        path.unlink(missing_ok=True)

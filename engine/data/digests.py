"""Digests of the content of cases' files, stored by path, size and modification time, so that each is read once."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.data.cases import Case, case_files
from engine.data.nifti import unreadable
from engine.runtime.distributed import gather, process_rank, shard
from engine.runtime.errors import InputError
from engine.runtime.files import combine_digests, digest_file, file_state, write_text
from engine.runtime.stop_requests import Poll, no_requests
from engine.runtime.threads import map_in_threads

Digests = dict[str, list[Any]]  # absolute path -> [size, modification time, digest]


def digest_cases(cases: Sequence[Case], store: Path, num_workers: int, poll: Poll = no_requests) -> list[str]:
    """Compute a digest of each case's files, in order; the same in every process.

    The processes share the reading, so all of them have to call this.

    Args:
        cases: "image" (one path, or one per channel) and, if any, "label".
        store: JSON file with the digests of earlier calls; updated by rank 0, if it is writable.
        num_workers: files that a process reads at the same time; 0 counts as 1.
        poll: called after each file.
    Raises:
        InputError: a file cannot be read.
    """
    known = _read_store(store)
    paths = sorted({os.path.abspath(path) for case in cases for path in case_files(case)})
    found = map_in_threads(
        lambda path: _digest_if_changed(path, known.get(path)),
        *(shard(paths), num_workers, "looking for cached cases", poll),
    )
    digests = dict(zip(paths, gather(found), strict=True))
    if process_rank() == 0 and any(known.get(path) != entry for path, entry in digests.items()):
        # Read again, since another run may have added to it.
        known = {path: entry for path, entry in _read_store(store).items() if os.path.exists(path)}
        _write_store(store, known | digests)
    return [combine_digests(digests[os.path.abspath(path)][-1] for path in case_files(case)) for case in cases]


def _digest_if_changed(path: str, known: list[Any] | None) -> list[Any]:
    """Return the stored entry of a file, or read the file if size or modification time have changed."""
    try:
        state = file_state(path)
        return known if known is not None and known[:-1] == state else [*state, digest_file(path)]
    except OSError as error:
        raise unreadable(path, error) from error


def _read_store(path: Path) -> Digests:
    """Read the stored digests; if that fails all files are read again, which costs nothing but time."""
    try:
        digests = json.loads(path.read_text())
        return {
            name: [int(size), int(time), bytes.fromhex(digest).hex()] for name, (size, time, digest) in digests.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _write_store(path: Path, digests: Digests) -> None:
    with suppress(InputError):  # a complete cache need not be writable; the files are then read again next time
        write_text(path, json.dumps(digests, indent=0, sort_keys=True) + "\n", shared=True)

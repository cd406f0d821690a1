"""Digests of what cases' files hold, remembered by path, size and modification time: each file is read once."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.data.cases import Case, case_files
from engine.data.nifti import unreadable
from engine.runtime.distributed import gather, process_rank, shard
from engine.runtime.errors import InputError
from engine.runtime.files import combine_digests, digest_file, file_state, write_text

Memory = dict[str, list[Any]]  # absolute path -> [size, modification time, digest]


def digest_cases(cases: Sequence[Case], memory_file: Path, num_workers: int) -> list[str]:
    """A digest of each case's files, in order; the same in every process.

    Several processes share the reading, so that all of them have to call this.

    Args:
        cases: "image" (a path, or one a channel) and, where there is one, "label".
        memory_file: JSON file with what earlier calls found; updated by process 0, if it can be written.
        num_workers: files that a process reads at the same time; 0 is taken for 1.
    Raises:
        InputError: a file cannot be read.
    """
    known = _read_memory(memory_file)
    paths = sorted({os.path.abspath(path) for case in cases for path in case_files(case)})
    part = shard(paths)
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        found = pool.map(lambda path: _look(path, known.get(path)), part)
        bar = tqdm(found, "looking for cached cases", len(part), leave=False, disable=process_rank() != 0)
        memory = dict(zip(paths, gather(list(bar)), strict=True))
    if process_rank() == 0 and any(known.get(path) != entry for path, entry in memory.items()):
        _write_memory(memory_file, known | memory)
    return [combine_digests(memory[os.path.abspath(path)][-1] for path in case_files(case)) for case in cases]


def _look(path: str, known: list[Any] | None) -> list[Any]:
    """What is to be remembered of a file, which is read unless it is as it was."""
    try:
        state = file_state(path)
        return known if known is not None and known[:-1] == state else [*state, digest_file(path)]
    except OSError as error:
        raise unreadable(path, error) from error


def _read_memory(path: Path) -> Memory:
    """What is remembered; nothing where it cannot be read, which costs time and no more."""
    try:
        memory = json.loads(path.read_text())
        return {name: [int(size), int(time), str(digest)] for name, (size, time, digest) in memory.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _write_memory(path: Path, memory: Memory) -> None:
    with suppress(InputError):  # a complete cache need not be writable; its files are read again the next time
        write_text(path, json.dumps(memory, indent=0, sort_keys=True) + "\n", shared=True)

"""Disk cache of preprocessed cases, so that deterministic transforms run once and a crop reads only its own voxels.

    <cache_dir>/digests.json                                digests of files' content when they were last read
    <cache_dir>/<settings key>/settings.json                transforms, and versions of these and libraries, of the key
    <cache_dir>/<settings key>/<case id>-<content key>/     one file per array, and entry.json with types and shapes

A case with other settings or other file content gets another folder. A folder is complete once it has its final name.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.transforms import Compose, RandomizableTrait, Spacingd, Transform
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from engine.data.cases import Case, case_files, image_files
from engine.data.cases_in_memory import CasesInMemory
from engine.data.crops import CountClassesd, PadToSized
from engine.data.digests import digest_cases
from engine.data.fingerprint import fingerprint, library_versions
from engine.data.header_checks import Grid
from engine.data.loading import Loader
from engine.data.nifti import open_volume
from engine.runtime.distributed import barrier, process_rank, shard
from engine.runtime.errors import DISK_IS_FULL, InputError
from engine.runtime.files import DIGEST_BYTES, name_aside, write_text
from engine.runtime.stop_requests import Poll, no_requests
from networks.whole_files import PARTIAL

DIGESTS = "digests.json"
ENTRY = f"(.+)-[0-9a-f]{{{2 * DIGEST_BYTES}}}"  # <case id>-<content key>
ABANDONED_AFTER_S = 24 * 3600  # no process needs a day to write one entry
# Errors that damaged entries raise.
DAMAGED_ENTRY = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class CachedCases(Dataset):
    """Dataset of cases whose deterministic transforms are cached; the random ones run on memory-mapped arrays.

    Args:
        cases: cases with "id".
        transform: the whole pipeline, as for MONAI's datasets.
        entries: cache folder of each case.
    """

    def __init__(self, cases: Sequence[Case], transform: Compose, entries: Sequence[Path]) -> None:
        super().__init__(cases, transform)
        self.entries = entries

    def _transform(self, index: int) -> Any:
        assert isinstance(self.transform, Compose)
        try:
            item = {**self.data[index], **read_entry(self.entries[index])}
        except DAMAGED_ENTRY as error:
            found = f"{self.entries[index]} gone or damaged ({error})"
            raise InputError(f"--cache_dir: found {found}, expected it to stay unchanged during the run") from error
        first = first_random(self.transform)
        return item if first is None else self.transform(item, start=first)


def cached_dataset(
    cases: Sequence[Case],
    transform: Compose,
    cache_dir: str | None,
    cache_rate: float,
    num_workers: int,
    sharded: bool = False,
    poll: Poll = no_requests,
) -> Dataset:
    """Build a dataset that caches the results of deterministic transforms, in ``cache_dir`` or partly in memory.

    The processes share the preprocessing for ``cache_dir``, so all of them have to call this.

    Args:
        cases: cases of the dataset, the same in every process.
        transform: deterministic transforms, followed by random ones.
        cache_dir: folder of the disk cache; None or empty to cache in memory.
        cache_rate: share of the cases kept in memory, if ``cache_dir`` is None.
        num_workers: number of processes that preprocess, or of threads if ``cache_dir`` is None.
        sharded: whether this process's dataset is its shard of the cases (``shard``), not all of them.
        poll: called after each case.
    Raises:
        InputError: see ``open_cache``.
    """
    if cache_dir:
        whole = open_cache(cases, transform, Path(cache_dir), num_workers, poll)
        return CachedCases(shard(whole.data), transform, shard(whole.entries)) if sharded else whole
    return CasesInMemory(shard(cases) if sharded else cases, transform, cache_rate, num_workers, poll)


def open_cache(
    cases: Sequence[Case], transform: Compose, folder: Path, num_workers: int, poll: Poll = no_requests
) -> CachedCases:
    """Open the disk cache as a dataset, after writing the entries that are missing.

    Each process writes its shard of them, so all processes have to call this.

    Args:
        cases: "id", "image" (a path, or a list of paths) and, if any, "label"; the same in every process.
        transform: deterministic transforms, followed by random ones.
        folder: the cache, for any number of datasets and settings; created if necessary.
        num_workers: processes that preprocess; with 0 the current process does.
        poll: called after each file that is looked at, and each case that is preprocessed.
    Raises:
        InputError: ``folder`` cannot be written to, has not enough space, or is not the same folder for all processes.
    """
    home = _make_home(folder, transform)
    keys = digest_cases(cases, folder / DIGESTS, num_workers, poll)
    entries = [home / f"{case['id']}-{key}" for case, key in zip(cases, keys, strict=True)]
    dataset = CachedCases(cases, transform, entries)
    missing = [number for number, entry in enumerate(entries) if not _is_whole(entry)]
    barrier()  # all processes have listed the missing entries before any of them writes one
    if missing:
        _announce(dataset, missing)
        # Shards of all cases, not of the missing ones: another run may have written some between two processes' lists.
        own = set(shard(range(len(cases))))
        _fill(dataset, [number for number in missing if number in own], num_workers, poll)
    barrier()
    if lacking := sum(not _is_whole(entries[number]) for number in missing):
        found = f"{folder} without {lacking} of {len(cases)} cases after all processes had written theirs"
        raise InputError(f"--cache_dir: found {found}, expected a folder that all machines share")
    if missing and process_rank() == 0:
        _remove_older_entries(dataset)
    return dataset


def _announce(dataset: CachedCases, missing: Sequence[int]) -> None:
    """Print which entries will be written and the space they need; InputError if the folder is not writable."""
    home = dataset.entries[0].parent
    needed, free = bytes_needed(dataset, missing), shutil.disk_usage(home).free
    print(
        f"--cache_dir: {len(missing)} of {len(dataset)} cases to preprocess into {home}, "
        f"at most {_gigabytes(needed)}, {_gigabytes(free)} free"
    )
    for number in missing:
        if dataset.entries[number].exists():
            print(f"--cache_dir: found {dataset.entries[number]} damaged, writing it again")
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise _cannot_write(home, error) from error


def _make_home(folder: Path, transform: Compose) -> Path:
    """Create the folder of this pipeline's entries, and remove what killed processes left in it long ago."""
    steps = transform.transforms[: first_random(transform)]
    settings = json.dumps({"versions": library_versions(), "transforms": fingerprint(steps)}, indent=2) + "\n"
    home = folder / hashlib.blake2b(settings.encode(), digest_size=DIGEST_BYTES).hexdigest()
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "settings.json").exists():  # a complete cache need not be writable
            write_text(home / "settings.json", settings, shared=True)
        partial = [*folder.glob(f".*{PARTIAL}"), *home.glob(f".*{PARTIAL}")]
    except OSError as error:
        raise _cannot_write(folder, error) from error
    except InputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise _cannot_write(folder, error.__cause__) from error
    for path in partial:
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
                if path.is_file():
                    path.unlink()
                else:
                    shutil.rmtree(path, ignore_errors=True)
    return home


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(f"--cache_dir: {folder} cannot be written to ({error.strerror}), expected a folder that can")


def first_random(transform: Compose) -> int | None:
    """Find the index of the first random transform by MONAI's rule for cached datasets; None if there is none."""
    return transform.get_index_of_first(
        lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
    )


def largest_bytes(shape: Sequence[int], channels: int, transform: Compose) -> int:
    """Compute the bytes of an entry if no voxel is cropped away: float32 images, a uint8 label, int64 counts.

    Args:
        shape: (D, H, W) of the resampled volume.
        channels: channels of its image.
        transform: pipeline that pads only with ``PadToSized``, if at all.
    """
    for step in transform.transforms:
        if isinstance(step, PadToSized):
            shape = tuple(map(max, shape, step.size))
    depth, height, width = shape
    classes = [step.classes - 1 for step in transform.transforms if isinstance(step, CountClassesd)]
    counts = height + (classes[0] if classes else height)  # of each plane: background, foreground
    return depth * (height * width * (4 * channels + 1) + 8 * counts)


def bytes_needed(dataset: CachedCases, numbers: Sequence[int]) -> int:
    """Sum the largest possible bytes of several cases' entries; only the headers of their images are read."""
    assert isinstance(dataset.transform, Compose)
    spacings = [step.spacing_transform.pixdim for step in dataset.transform.transforms if isinstance(step, Spacingd)]
    total = 0
    for number in numbers:
        headers = [open_volume(path) for path in image_files(dataset.data[number])]
        grid = Grid(headers[0].shape[:3], headers[0].affine).turn_to_ras()
        shape = grid.resampled_shape(spacings[0]) if spacings else grid.shape
        total += largest_bytes(shape, sum(math.prod(header.shape[3:]) for header in headers), dataset.transform)
    return total


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


class _EntryWriter(TorchDataset[OSError | None]):
    """Dataset that writes an entry for each item, so that the processes of a DataLoader do the work."""

    def __init__(self, dataset: CachedCases) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> OSError | None:
        """Write an entry and return the error, if any: raised in a worker, it would arrive as text only."""
        case, transform = self.dataset.data[index], self.dataset.transform
        assert isinstance(transform, Compose)
        item = transform(dict(case), end=first_random(transform), threading=True)
        tensors = {name: value for name, value in item.items() if isinstance(value, Tensor)}
        assert item.keys() - tensors.keys() <= case.keys()  # an entry loses nothing
        arrays = {name: value.as_subclass(Tensor).contiguous().numpy() for name, value in tensors.items()}
        try:
            write_entry(self.dataset.entries[index], arrays, _sources(case))
        except OSError as error:
            return error
        return None


def _remove_older_entries(dataset: CachedCases) -> None:
    """Remove entries with other content of the same cases and files."""
    current = {entry.name: case for entry, case in zip(dataset.entries, dataset.data, strict=True)}
    cases = {_case_part(name): case for name, case in current.items()}
    for path in dataset.entries[0].parent.iterdir():
        case = cases.get(_case_part(path.name))
        # Judged by the name alone, it could be a case of another dataset, and in use.
        if case is not None and path.name not in current and _read_sources(path) == _sources(case):
            with suppress(OSError):
                _discard(path)


def _case_part(name: str) -> str:
    """Return what precedes the content key in the name of an entry; empty for other names."""
    return match[1] if (match := re.fullmatch(ENTRY, name)) else ""


def _sources(case: Case) -> list[str]:
    return [os.path.abspath(path) for path in case_files(case)]


def _fill(dataset: CachedCases, missing: Sequence[int], num_workers: int, poll: Poll) -> None:
    """Write entries; after the first failure no other is begun."""
    errors: list[OSError] = []
    loader = Loader(
        _EntryWriter(dataset),
        batch_size=None,
        sampler=(number for number in missing if not errors),
        num_workers=num_workers,
        prefetch_factor=1 if num_workers else None,
        generator=torch.Generator(),  # so that later random numbers do not depend on the missing entries
    )
    for error in tqdm(loader, "preprocessing", len(missing), disable=process_rank() != 0):
        if error is not None:
            errors.append(error)
        poll()
    if not errors:
        return
    home = dataset.entries[0].parent
    if errors[0].errno not in DISK_IS_FULL:
        raise _cannot_write(home, errors[0])
    left = [number for number in missing if not _is_whole(dataset.entries[number])]
    raise InputError(
        f"--cache_dir: found {home} on a full disk ({errors[0].strerror}) with {len(dataset) - len(left)} of "
        f"{len(dataset)} cases written, which are kept; expected space for the others, at most "
        f"{_gigabytes(bytes_needed(dataset, left))}"
    )


def write_entry(path: Path, arrays: dict[str, NDArray[Any]], sources: Sequence[str]) -> None:
    """Write an entry atomically.

    Args:
        path: folder of the entry; if another process has already written a complete one, that one stays.
        arrays: arrays by name.
        sources: absolute paths of the case's files.
    Raises:
        OSError: the entry cannot be written.
    """
    expected = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    aside = name_aside(path)
    try:
        aside.mkdir()
        for name, array in arrays.items():
            _write(aside / f"{name}.npy", array)
        with open(aside / "entry.json", "w") as file:
            json.dump({"sources": list(sources), "arrays": expected}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        while not _rename(aside, path) and not _is_whole(path):
            _discard(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_entry(path: Path) -> dict[str, Tensor]:
    """Map the arrays of an entry into memory: a page is read on first access, and changes to it stay private.

    Raises:
        OSError, ValueError, ...: see ``DAMAGED_ENTRY``; the entry is missing, truncated, or differs from entry.json.
    """
    tensors = {}
    for name, expected in json.loads((path / "entry.json").read_text())["arrays"].items():
        if Path(name).name != name:  # an entry from another machine could name any path
            raise ValueError(f"entry.json: found an array named {name}, expected the name of a file in the same folder")
        array = np.load(path / f"{name}.npy", mmap_mode="c", allow_pickle=False)
        if [str(array.dtype), list(array.shape)] != expected:
            raise ValueError(f"{name}.npy: found {array.dtype} of shape {array.shape}, expected {expected}")
        tensors[name] = torch.from_numpy(array)
    return tensors


def _is_whole(path: Path) -> bool:
    """Check that an entry exists and can be read."""
    try:
        read_entry(path)
    except DAMAGED_ENTRY:
        return False
    return True


def _read_sources(path: Path) -> Any:
    try:
        return json.loads((path / "entry.json").read_text())["sources"]
    except DAMAGED_ENTRY:
        return None


def _write(path: Path, array: NDArray[Any]) -> None:
    """Write an .npy file and flush it to the disk; numpy's own writer reports a full disk without an error number."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def _rename(folder: Path, path: Path) -> bool:
    """Rename a folder to its final name; returns False if a folder of that name exists."""
    try:
        os.rename(folder, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _discard(path: Path) -> None:
    """Remove an entry; its name disappears at once, and processes that have mapped its files keep them."""
    aside = name_aside(path)
    with suppress(FileNotFoundError):
        os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)

"""Memory of a process and its descendants, by Linux's /proc, and their end."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_EVERY = 0.02  # seconds between samples, in a process that does nothing else
SAMPLE_BY_THREAD = 0.2  # seconds between samples, in a thread of the measured process


def process_tree(process: int) -> dict[int, int]:
    """Find a process and its descendants: resident bytes by process id."""
    parents, resident = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            pages = int((folder / "statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        parents[int(folder.name)], resident[int(folder.name)] = parent, pages * 4096

    def belongs(number: int) -> bool:
        return number == process or (number in parents and belongs(parents[number]))

    return {number: size for number, size in resident.items() if belongs(number)}


def resident_bytes(process: int) -> int:
    """Sum the resident memory of a process and its descendants; shared pages count in each of them."""
    return sum(process_tree(process).values())


def kill_tree(process: int) -> None:
    """Kill a process and its descendants, including those in process groups and sessions of their own."""
    for number in process_tree(process):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def proportional_bytes(process: int) -> int:
    """Sum the memory of a process and its descendants; shared pages count once."""
    total = 0
    for number in process_tree(process):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            lines = Path("/proc", str(number), "smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


class PeakMemory:
    """Peak memory of a process and its descendants during a block; a context manager.

    Shared pages count once: otherwise those of CUDA's libraries would count in each loading process.

    Args:
        process: id of the process; this one by default.
    """

    def __init__(self, process: int | None = None) -> None:
        self.process = os.getpid() if process is None else process
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        done = False
        while not done:
            done = self._done.wait(SAMPLE_BY_THREAD)
            self.bytes = max(self.bytes, proportional_bytes(self.process))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

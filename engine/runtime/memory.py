"""Settings of the process that OpenMP and the C library take once, before work starts."""

import ctypes
import os

# glibc's mallopt, malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def tune_process() -> None:
    """Let waiting threads leave the cores to others, and freed memory stay with the process (see README, Speed).

    Call it before PyTorch is imported: OpenMP reads its variable then. One that is set already keeps its value.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Without this every large tensor comes from the kernel page by page, zeroed, and goes back when it is freed.

    On a CPU that was half of a training step's time. Elsewhere than under glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Give the kernel what ``tune_process`` made this process keep; between cases, of which none is like another."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""Process settings of OpenMP and the C library, made once before work starts, and the release of freed memory."""

import ctypes
import os

# glibc's mallopt, malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def tune_process() -> None:
    """Make waiting threads yield their cores, and keep freed memory in the process (see docs/speed.md).

    Call it before PyTorch is imported, which is when OpenMP reads its variable. A value that is already set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Stop glibc from returning large tensors to the kernel when they are freed.

    Otherwise the kernel supplies each of them page by page, zeroed, which on a CPU was half of a training step's time.
    With another C library this changes nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Return to the kernel the memory that ``tune_process`` keeps; for use between cases, which differ in size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

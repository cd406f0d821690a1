"""Settings of the process that PyTorch, OpenMP and the C library read once, when they start."""

import os


def tune_process() -> None:
    """Make waiting threads leave the cores to others. Call it before PyTorch is imported.

    Variables that are set already keep their values.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see README, Speed

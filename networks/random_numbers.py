"""Random numbers for those parts of a network that its variants lack."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def separate_random_numbers() -> Iterator[None]:
    """Draw random numbers within this context from a sequence of their own, on the CPU; what follows is unaffected.

    A network whose variants lack a part initialises that part within. All other parts then start with the same weights
    in every variant (for one seed), so that the variants can be compared apart from their initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed GPUs too, and they would not be restored.
        torch.default_generator.manual_seed(int(torch.randint(2**63 - 1, (), device="cpu")))
        yield

"""Random numbers for those parts of a network that some of its variants lack."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def separate_random_numbers() -> Iterator[None]:
    """Initialise a part of a network from a sequence of its own, on the CPU.

    With one seed, all other parts then start with the same weights in a variant without this part, so that a comparison
    of the two is not one of initialisations as well.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed GPUs too, and they would not be restored.
        torch.default_generator.manual_seed(int(torch.randint(2**63 - 1, (), device="cpu")))
        yield

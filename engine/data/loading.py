"""Data loading: the loading processes, and training batches as a function of (seed, iteration).

A run that starts at an iteration sees the same batches as one that has reached it, with any number of loading
processes: an exact resume needs no saved random state.
"""

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from monai.data import Dataset as TransformedDataset
from monai.data import list_data_collate
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset, Sampler

from engine.runtime.distributed import process_count, process_rank
from engine.runtime.stop_requests import block_stop_signals, ignore_stop_signals

Draw = tuple[int, int]  # (number of the draw since the start of the run, index of the case)


class Loader(DataLoader[Any]):
    """PyTorch's DataLoader with processes that ignore requests to stop, from their first moment on.

    Args: as DataLoader, by name after the dataset.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        super().__init__(dataset, worker_init_fn=ignore_stop_signals, **options)

    def __iter__(self) -> Any:
        with block_stop_signals():  # a process reaches ignore_stop_signals some hundredths of a second after its start
            return super().__iter__()


def derive_seed(*numbers: int) -> int:
    """Derive a 32-bit seed from a run's seed and further numbers; close numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class EndlessBatches(Sampler[list[Draw]]):
    """Batches of draws for the iterations from ``start`` on; every epoch is a new permutation of the cases.

    Several processes share the batch that a single process with the sum of their batch sizes would have.

    Args:
        cases: number of cases.
        batch_size: cases per batch, in each process.
        seed: seed of the run.
        start: iterations already done.
        stop: iterations at the end.
        rank: rank of this process.
        processes: world size.
    """

    def __init__(
        self, cases: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.cases, self.seed, self.start, self.stop = cases, seed, start, stop
        self.whole_batch = processes * batch_size
        self.part = slice(rank * batch_size, (rank + 1) * batch_size)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = self._draws(self.start * self.whole_batch)
        for _ in range(len(self)):
            yield list(islice(draws, self.whole_batch))[self.part]

    def _draws(self, first: int) -> Iterator[Draw]:
        for epoch in count(first // self.cases):
            order = np.random.default_rng((self.seed, epoch)).permutation(self.cases)
            for position in range(max(0, first - epoch * self.cases), self.cases):
                yield epoch * self.cases + position, int(order[position])


class SeededDataset(Dataset[Any]):
    """Dataset whose random transforms are reseeded for each draw.

    Args:
        dataset: cases with deterministic transforms followed by random ones.
        seed: seed of the run.
    """

    def __init__(self, dataset: TransformedDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, draw: Draw) -> Any:
        number, case = draw
        assert isinstance(self.dataset.transform, Compose)
        self.dataset.transform.set_random_state(derive_seed(self.seed, number))
        return self.dataset[case]


def training_loader(
    dataset: TransformedDataset,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    num_workers: int,
    pin_memory: bool = False,
) -> Loader:
    """Load the training batches of iterations ``start`` to ``stop``, this process's shard of each.

    Args:
        dataset: cases with deterministic transforms followed by random ones.
        batch_size: cases per batch, in each process.
        seed: seed of the run.
        start: iterations already done.
        stop: iterations at the end.
        num_workers: number of loading processes.
        pin_memory: whether batches are to be copied to a GPU.
    """
    return Loader(
        SeededDataset(dataset, seed),
        batch_sampler=EndlessBatches(len(dataset), batch_size, seed, start, stop, process_rank(), process_count()),
        num_workers=num_workers,
        collate_fn=list_data_collate,
        pin_memory=pin_memory,
    )


def case_loader(dataset: Dataset[Any], num_workers: int) -> Loader:
    """Load whole cases one by one; volumes are large, so each worker prefetches only one.

    Args:
        dataset: preprocessed cases.
        num_workers: number of loading processes.
    """
    ahead = 1 if num_workers else None
    return Loader(dataset, batch_size=None, num_workers=num_workers, prefetch_factor=ahead)


def seed_iteration(seed: int, iteration: int, rank: int = 0) -> None:
    """Seed the network's random numbers of an iteration (dropout, stochastic depth), on every device.

    Each process draws different numbers; rank 0 draws those of a run with a single process.
    """
    torch.manual_seed(derive_seed(seed, iteration, 0x5EED, rank))  # NumPy ignores a last number of 0

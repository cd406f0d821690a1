"""Loading: the processes that load data, and training batches as a function of (seed, iteration).

A run that was started at an iteration and one that arrived there see the same batches, however many processes load:
nothing random has to be saved for an exact resume.
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

Draw = tuple[int, int]  # (number of the draw since the run began, index of the case)


class Loader(DataLoader[Any]):
    """PyTorch's DataLoader; its processes hear no request to stop, from their first moment on.

    Args: as DataLoader; those that follow the dataset by name.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        super().__init__(dataset, worker_init_fn=ignore_stop_signals, **options)

    def __iter__(self) -> Any:
        with block_stop_signals():  # a process comes to ignore_stop_signals some hundredths of a second after its start
            return super().__iter__()


def derive_seed(*numbers: int) -> int:
    """A 32-bit seed from a run's seed and what it is for; close numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class EndlessBatches(Sampler[list[Draw]]):
    """Batches of draws for the iterations from ``start`` on; every epoch is a new permutation of the cases.

    Several processes deal out among them the batch that one process with their batch sizes together would have.

    Args:
        cases: their number.
        batch_size: cases a batch, in each process.
        seed: of the run.
        start: iterations already done.
        stop: iterations at the end.
        rank: number of this process.
        processes: how many there are.
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
    """A dataset whose random transforms are seeded anew for each draw.

    Args:
        dataset: cases with deterministic transforms followed by random ones.
        seed: of the run.
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
        batch_size: cases a batch, in each process.
        seed: of the run.
        start: iterations already done.
        stop: iterations at the end.
        num_workers: processes that load.
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
    """Whole cases one at a time; volumes are large, so that one waiting a worker is enough.

    Args:
        dataset: of preprocessed cases.
        num_workers: processes that load.
    """
    ahead = 1 if num_workers else None
    return Loader(dataset, batch_size=None, num_workers=num_workers, prefetch_factor=ahead)


def seed_iteration(seed: int, iteration: int, rank: int = 0) -> None:
    """Seed what a network draws in this iteration (dropout, stochastic depth), on every device.

    Processes draw differently, number 0 as one alone does.
    """
    torch.manual_seed(derive_seed(seed, iteration, 0x5EED, rank))  # a last number of 0 is as good as none

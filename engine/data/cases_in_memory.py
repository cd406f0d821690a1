"""Cache of preprocessed cases in memory."""

from collections.abc import Sequence
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Compose

from engine.data.cases import Case
from engine.runtime.stop_requests import Poll
from engine.runtime.threads import map_in_threads


class CasesInMemory(CacheDataset):
    """MONAI's CacheDataset, without threads that are left running when a case fails or the run is to stop.

    Args:
        cases: cases of the dataset.
        transform: deterministic transforms, whose results are cached, followed by random ones.
        cache_rate: share of the cases kept in memory.
        threads: cases that are preprocessed at a time.
        poll: called after each case.
    """

    def __init__(self, cases: Sequence[Case], transform: Compose, cache_rate: float, threads: int, poll: Poll) -> None:
        self._poll = poll
        # No transform changes a cached volume in place, so draws need no copy.
        super().__init__(cases, transform, cache_rate=cache_rate, num_workers=threads, copy_cache=False)
        del self._poll  # the dataset goes to the loading processes, which take no requests

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        numbers = range(self.cache_num) if indices is None else indices
        return map_in_threads(self._load_cache_item, numbers, self.num_workers or 1, "caching cases", self._poll)

"""Cases in memory: those of MONAI's CacheDataset, and no thread that is left running."""

import pickle
import time
from threading import Event, active_count

import pytest
from monai.data import CacheDataset
from monai.transforms import Compose, Lambda

from engine.data.cache import cached_dataset
from engine.runtime.errors import Stopped

CASES = [{"id": name} for name in "abcd"]


def upper(case):
    return {"id": case["id"].upper()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_the_cases_are_those_of_monai(rate, workers):
    transform = Compose([Lambda(upper)])
    ours = cached_dataset(CASES, transform, None, rate, workers)
    theirs = CacheDataset(CASES, transform, cache_rate=rate, num_workers=1, progress=False)
    assert list(ours) == list(theirs) == [{"id": name} for name in "ABCD"]
    assert list(ours._cache) == list(theirs._cache)
    assert list(pickle.loads(pickle.dumps(ours))) == list(ours)  # as loading processes receive it


class SecondIsSlow:
    """Transform that ends case a while b is in work; a fails if it is to."""

    def __init__(self, fails):
        self.fails, self.second = fails, Event()

    def __call__(self, case):
        if case["id"] == "a":
            assert self.second.wait(10)
            if self.fails:
                raise ValueError("broken")
        else:
            self.second.set()
            time.sleep(0.2)
        return case


def ask_to_stop():
    raise Stopped("SIGTERM")


@pytest.mark.parametrize(("fails", "expected"), [(True, RuntimeError), (False, Stopped)])
def test_no_thread_is_left_running(fails, expected):
    """It would be inside PyTorch when the interpreter ends, and make the process abort (SIGABRT)."""
    before = active_count()
    with pytest.raises(expected):
        cached_dataset(CASES, Compose([Lambda(SecondIsSlow(fails))]), None, 1, 2, poll=ask_to_stop)
    assert active_count() == before

"""Work in threads: results in order, and no thread that is left running after an error or a request to stop."""

import time
from threading import Event, active_count

import pytest

from engine.runtime.errors import Stopped
from engine.runtime.threads import map_in_threads


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_are_in_order(threads):
    polled = []
    results = map_in_threads(lambda item: item**2, range(5), threads, "squaring", lambda: polled.append(None))
    assert results == [0, 1, 4, 9, 16]
    assert len(polled) == 5


def test_no_items_are_no_work():
    assert map_in_threads(None, [], 2, "nothing") == []


class TwoAtATime:
    """Function whose second item runs when the first one ends, by an error or not."""

    def __init__(self, error=None):
        self.error, self.second, self.begun, self.ended = error, Event(), [], []

    def __call__(self, item):
        self.begun.append(item)
        if item == 0:
            assert self.second.wait(10)
            if self.error:
                raise self.error
        else:
            self.second.set()
            time.sleep(0.2)
        self.ended.append(item)


def ask_to_stop():
    raise Stopped("SIGTERM")


def test_after_a_request_to_stop_what_runs_ends_and_nothing_is_begun():
    before, work = active_count(), TwoAtATime()
    with pytest.raises(Stopped):
        map_in_threads(work, range(100), 2, "working", ask_to_stop)
    assert active_count() == before
    assert 1 in work.ended
    assert sorted(work.begun) == sorted(work.ended)
    assert len(work.begun) < 10


def test_after_an_error_what_runs_ends_and_nothing_is_begun():
    before, work = active_count(), TwoAtATime(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        map_in_threads(work, range(100), 2, "working")
    assert active_count() == before
    assert sorted(work.begun) == [0, *sorted(work.ended)]
    assert len(work.begun) < 10

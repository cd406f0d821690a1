"""Work in several threads, all of which have ended when it is over."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from engine.runtime.distributed import process_rank
from engine.runtime.stop_requests import Poll, no_requests

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, title: str, poll: Poll = no_requests
) -> list[Result]:
    """Apply a function to each item in threads, with a progress bar, and return the results in order.

    No thread is left running, after an error or a request to stop either: if the interpreter ended while one was inside
    PyTorch, the process would abort by SIGABRT. So the items that have begun are finished, and no others are begun.

    Args:
        function: function of one item.
        items: the items.
        threads: items at a time; 0 counts as 1.
        title: text before the progress bar, which only rank 0 shows.
        poll: called after each item, in the calling thread.
    Raises:
        Exception: the error of the first item, in their order, that failed, or what ``poll`` raises.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        futures = [pool.submit(function, item) for item in items]
        results = []
        try:
            for future in tqdm(futures, title, leave=False, disable=process_rank() != 0 or not futures):
                results.append(future.result())
                poll()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results

"""Requests to stop: SIGTERM (batch systems, preemption), Ctrl-C, or the end of --max_hours.

A request is noted, and ``Stopped`` is raised only where the code polls for requests, between two pieces of work. If the
signal handler raised it, that would be inside whatever runs, and not all code can bear that: PyTorch starts an import
of NumPy, for instance, and goes on with half of it if that is interrupted.
"""

import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType, TracebackType
from typing import Any, Self

from engine.runtime.errors import Stopped
from engine.runtime.files import LAST, PREVIOUS

STDERR = 2  # the file descriptor: Python's object has a buffer, which may be in use when a signal arrives
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)

Poll = Callable[[], None]  # raises Stopped if there was a request; long work calls it between its pieces


def no_requests() -> None:
    """Poll where nothing takes requests to stop: a signal ends the process in the usual way."""


class StopRequests:
    """Context that notes the first request to stop, for code that polls by ``reason`` or ``raise_if_requested``.

    Use it in the main thread. Further requests are ignored.

    Args:
        max_hours: time after which this process stops itself; None for no limit.
        limit: flag that sets this time, for messages.
    """

    def __init__(self, max_hours: float | None = None, limit: str = "--max_hours") -> None:
        self.max_hours = max_hours
        self.reasons = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGALRM: limit}
        self.reason: str | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        if self.max_hours is not None:
            signal.setitimer(signal.ITIMER_REAL, self.max_hours * 3600)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.reason is not None:
            return
        self.reason = self.reasons[signal.Signals(number)]
        if os.environ.get("RANK", "0") == "0":  # torchrun asks all processes, also those that wait after an error
            os.write(STDERR, f"\n{self.reason}: stopping after this step\n".encode())

    def raise_if_requested(self) -> None:
        """Raise ``Stopped`` if there was a request."""
        if self.reason is not None:
            raise Stopped(self.reason)


def resume_command(output: Path) -> str:
    """Compose the command line that resumes this run; the part for torchrun itself is not known here.

    Args:
        output: folder of the run; if it holds no checkpoint yet, the command starts the run anew.
    """
    begun = any(os.path.exists(output / name) for name in (LAST, PREVIOUS))
    words = [*sys.argv, *(["--resume"] if begun and "--resume" not in sys.argv else [])]
    launcher = "torchrun ..." if "TORCHELASTIC_RUN_ID" in os.environ else shlex.quote(sys.executable)
    return f"{launcher} {shlex.join(words)}"


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Block the signals of stop requests during a block of code; one sent meanwhile is delivered at its end.

    Processes that are started in the block inherit the blocked signals until they unblock them themselves.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def ignore_stop_signals(_: int = 0) -> None:
    """Ignore stop requests in a data-loading process: a signal to the process group is meant for the training process.

    Otherwise the loading processes would die during the step after which the run is saved. Only their parent ends them.
    Start them within ``block_stop_signals``, since this function comes too late for their first moments.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_unless_disconnected
    if hasattr(signal, "sigwaitinfo"):  # macOS lacks it, and does not report the sender of a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = multiprocessing.parent_process()
        Thread(target=_end_by, args=(parent.pid if parent else os.getppid(),), daemon=True).start()


def _report_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Keep silent where a training process that stops drops the connection over which it receives a batch.

    multiprocessing's thread that hands out batches reports here; errors of the data go to the training process instead.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end_by(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

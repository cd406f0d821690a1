"""Other scripts as processes of a command that runs several of them, and locks on the folders that they write to."""

import errno
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from engine.runtime.errors import InputError
from engine.runtime.stop_requests import StopRequests


@contextmanager
def locked(folder: Path, flag: str) -> Iterator[int]:
    """Make a folder, and hold a lock on it, in this process and those that inherit it, until the last has ended.

    On a disk without locks, such as some of clusters, a line says so, and the folder is not locked.

    Raises:
        InputError: the folder cannot be made, or another process holds its lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be made ({error.strerror}), expected a folder") from error
    try:
        _lock(descriptor, folder, flag)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, flag: str) -> None:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError as error:
        message = f"{flag}: found a process that runs in {folder}, expected it to end first"
        raise InputError(message) from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        print(f"warning: {folder} cannot be locked ({error.strerror}): start nothing else that writes to it")


def run_script(command: Sequence[str], stop: StopRequests, lock: int) -> int:
    """Run a script to its end, and return its exit status; a request to stop is passed on to it.

    Args:
        command: words of the command.
        stop: requests to stop this process.
        lock: file descriptor that the script keeps open, of ``locked``.
    Raises:
        Stopped: there was a request to stop, and the script has ended, or was not started.
    """
    stop.raise_if_requested()
    # In a session of its own: a Ctrl-C reaches the script through this process alone.
    process = subprocess.Popen(command, start_new_session=True, pass_fds=[lock])
    asked = False
    try:
        while process.poll() is None:
            if stop.reason is not None and not asked:
                process.terminate()
                asked = True
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
    except BaseException:
        process.terminate()
        raise
    stop.raise_if_requested()
    return process.returncode


def describe_status(status: int) -> str:
    """Describe how a process has ended: its signal, or its exit status."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"

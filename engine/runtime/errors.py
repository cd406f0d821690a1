"""How a script ends: exit statuses, and user mistakes in a line each, never a traceback."""

import argparse
import errno
import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

USER_ERROR = 2
SOME_CASES_FAILED = 1
STOPPED = 75  # sysexits.h calls it EX_TEMPFAIL: to be tried again
SECONDS_TO_STOP = 15  # more than torchrun takes to end its other processes when one has ended, on a busy machine too
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (*DISK_IS_FULL, errno.EROFS)  # a disk that fails becomes read-only
# How PyTorch and its data loader tell that memory was short, in a RuntimeError.
MEMORY_MESSAGES = (
    *("out of memory", "allocate memory", "bad_alloc", "killed by signal: Killed", "MemoryError", "ALLOC_FAILED"),
    *("out of shared memory", "</torch_"),  # the latter in the names of its files
)
FROM_A_LOADER = "Caught InputError in "  # how PyTorch hands on what a process that loads data raised, traceback and all


class InputError(ValueError):
    """A mistake in flags, files or folders: one line a problem, naming what was found and what was expected."""

    status = USER_ERROR


class DiskError(InputError):
    """A file cannot be written for want of space or permission: others will not be either."""


class CasesFailed(InputError):  # noqa: N818
    """Some cases could not be predicted, a line each; all the others were."""

    status = SOME_CASES_FAILED


class Stopped(BaseException):
    """A run was asked to stop, and may go on later. No Exception: nothing on the way may take it for a failure."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise an ``InputError`` with a line a problem, if there are any."""
    if problems:
        raise InputError("\n".join(problems))


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line, without the usage text."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. What holds a NUL character, which only other programs can hand over, names no file."""
        if any("\0" in word for word in args or ()):
            self.error("found a NUL character, expected text without")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if os.environ.get("RANK", "0") != "0":  # process 0 of torchrun's finds the same mistake, and tells it
            time.sleep(SECONDS_TO_STOP)
        self.exit(USER_ERROR, f"{self.prog}: error: {' '.join(message.splitlines())}\n")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory, the machine's or a device's, was too small."""
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_MESSAGES)
    if told or isinstance(error, MemoryError):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)  # MONAI wraps errors of its transforms


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace, to_lower: str = "") -> int:
    """Run a script's ``main`` and return its exit status; user's mistakes become lines on stderr and status 2.

    Args:
        main: of the script.
        args: for it.
        to_lower: the flags that decide how much memory it needs; a lack of memory is a mistake, too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a file's name need not be text
    try:
        main(args)
        sys.stdout.flush()
    except InputError as mistake:
        text = str(mistake)
        if text.startswith(FROM_A_LOADER):
            text = text.rpartition(f"{InputError.__name__}: ")[2].strip()
        print(*(f"error: {line}" for line in text.splitlines()), sep="\n", file=sys.stderr)
        return mistake.status
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, which all stop
            print(f"stopped by {stop}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except (MemoryError, RuntimeError) as error:
        if not to_lower or not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"error: out of memory ({reason}), expected lower {to_lower}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:  # of writers that are not ours, TensorBoard's for instance
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        if error.errno not in NOT_WRITABLE:
            raise
        print(f"error: {error.filename or '--output'}: {error.strerror}, expected a disk with space", file=sys.stderr)
        return USER_ERROR
    return 0


def _nobody_reads() -> bool:
    """Whether stdout leads to a pipe that was closed, as by ``head``; then nothing that is left is written any more."""
    stdout, poll = sys.stdout.fileno(), select.poll()
    poll.register(stdout, 0)
    if not any(state & select.POLLERR for _, state in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True

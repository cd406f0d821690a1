"""Exit statuses of the scripts, and user mistakes as one line each, never a traceback."""

import argparse
import errno
import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from engine.runtime.argument_files import expand_argument_files

USER_ERROR = 2
SOME_CASES_FAILED = 1
STOPPED = 75  # EX_TEMPFAIL in sysexits.h: try again later
SECONDS_TO_STOP = 15  # longer than torchrun needs to end the other processes after one has ended, on a busy machine
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (*DISK_IS_FULL, errno.EROFS)  # a failing disk becomes read-only
# Texts of the RuntimeErrors by which PyTorch and its data loader report a lack of memory.
MEMORY_MESSAGES = (
    *("out of memory", "allocate memory", "bad_alloc", "killed by signal: Killed", "MemoryError", "ALLOC_FAILED"),
    "Storage size calculation overflowed",
)
# The same for shared memory, of which containers have little; the second is part of the names of its files.
SHARED_MEMORY_MESSAGES = ("out of shared memory", "</torch_")
MORE_SHARED_MEMORY = "a larger /dev/shm (in a container: --shm-size) or --num_workers 0"


class InputError(ValueError):
    """Mistake in flags, files or folders: one line per problem, with what was found and what was expected."""

    status = USER_ERROR


class DiskError(InputError):
    """Failure to write a file for lack of space or permission, which will affect other files as well."""


class CasesFailed(InputError):  # noqa: N818
    """Failure of some cases, one line each; all other cases were predicted."""

    status = SOME_CASES_FAILED


class Stopped(BaseException):
    """Request to stop a run, which can be resumed. Not an Exception, so that no handler mistakes it for a failure."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raise an ``InputError`` with one line per problem, if there are any."""
    if problems:
        raise InputError("\n".join(problems))


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help with the defaults of flags, except None, False and no text, and with the line breaks of descriptions."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default is None or default is False or default in ("", argparse.SUPPRESS) or "(default" in text:
            return text
        words = default if isinstance(default, list | tuple) else [default]
        shown = " ".join(map(str, words)).replace("%", "%%")
        return f"{text} (default: {shown})"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class OneLineParser(argparse.ArgumentParser):
    """Argument parser that reads flags from @FILE, and reports a mistake in one line, without the usage text."""

    def __init__(self, prog: str, description: str | None = None) -> None:
        super().__init__(prog, description=description, formatter_class=HelpFormatter)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and refuse NUL characters: other programs can pass them, no file name has them."""
        words = sys.argv[1:] if args is None else args
        if any("\0" in word for word in words):
            self.error("found a NUL character, expected text without one")
        try:
            words = list(expand_argument_files(words))
        except ValueError as error:
            self.error(str(error))
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        if os.environ.get("RANK", "0") != "0":  # under torchrun, rank 0 finds and reports the same mistake
            time.sleep(SECONDS_TO_STOP)
        self.exit(USER_ERROR, f"{self.prog}: error: {' '.join(message.splitlines())}\n")


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an exception means that the machine or a device ran out of memory, shared memory included."""
    reported = _reports(error, (*MEMORY_MESSAGES, *SHARED_MEMORY_MESSAGES))
    return reported or any(isinstance(each, MemoryError) for each in _chain(error))


def _reports(error: BaseException, texts: Sequence[str]) -> bool:
    """Check whether a RuntimeError has one of these texts in its message."""
    return any(isinstance(each, RuntimeError) and text in str(each) for each in _chain(error) for text in texts)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from: MONAI wraps errors of its transforms."""
    while error is not None:
        yield error
        error = error.__cause__


def _describe_lack_of_memory(error: BaseException, reason: str, to_lower: str) -> str:
    """Say that memory ran out, and what helps."""
    if _reports(error, SHARED_MEMORY_MESSAGES):
        return f"out of shared memory ({reason}), expected {MORE_SHARED_MEMORY}"
    return f"out of memory ({reason}), expected lower {to_lower}"


def message_of(error: BaseException) -> str:
    """Return an error's message; if it comes from a data-loading process, without the traceback that PyTorch adds."""
    text, name = str(error), type(error).__name__
    return text.rpartition(f"{name}: ")[2].strip() if text.startswith(f"Caught {name} in ") else text


def describe_error(case: str, error: BaseException, to_lower: str) -> str:
    """Describe the failure of a case in one line; an ``InputError`` already names the file.

    Args:
        case: id of the case.
        error: the exception.
        to_lower: flags to lower if memory ran out.
    """
    causes = list(_chain(error))
    cause = next((each for each in causes if isinstance(each, InputError)), causes[-1])
    lines = message_of(cause).splitlines() or [""]
    if isinstance(cause, InputError):
        return "; ".join(lines)
    reason = f"{type(cause).__name__}: {lines[0]}".removesuffix(": ")
    if is_out_of_memory(error):
        return f"{case}: {_describe_lack_of_memory(error, reason, to_lower)}"
    return f"{case}: {reason}"


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace, to_lower: str = "") -> int:
    """Run a script's ``main`` and return its exit status; user mistakes become lines on stderr and status 2.

    Args:
        main: main function of the script.
        args: its parsed arguments.
        to_lower: flags that determine how much memory the script needs. If given, running out of memory is a user
            mistake as well, and its message names them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as for stderr: a file name need not be valid text
    try:
        main(args)
        sys.stdout.flush()
    except InputError as mistake:
        print(*(f"error: {line}" for line in message_of(mistake).splitlines()), sep="\n", file=sys.stderr)
        return mistake.status
    except Stopped as stop:
        for number in (signal.SIGTERM, signal.SIGINT):  # whoever presses Ctrl-C again still gets this exit status
            signal.signal(number, signal.SIG_IGN)
        if os.environ.get("RANK", "0") == "0":  # under torchrun all processes stop, and rank 0 reports it
            print(f"stopped by {stop}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except (MemoryError, RuntimeError) as error:
        if not to_lower or not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"error: {_describe_lack_of_memory(error, reason, to_lower)}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:  # from writers of libraries, for instance TensorBoard's
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        if error.errno not in NOT_WRITABLE:
            raise
        print(f"error: {error.filename or '--output'}: {error.strerror}, expected a disk with space", file=sys.stderr)
        return USER_ERROR
    return 0


def _nobody_reads() -> bool:
    """Check whether stdout is a pipe that its reader, such as ``head``, has closed; if so, discard further output."""
    stdout, poll = sys.stdout.fileno(), select.poll()
    poll.register(stdout, 0)
    if not any(state & select.POLLERR for _, state in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True

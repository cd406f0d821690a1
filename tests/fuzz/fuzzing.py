"""Running scripts on random mistakes: what is an acceptable end, how many examples, how long, how much memory.

The tests beside this file draw their examples with Hypothesis:

    test_fuzz_volumes.py       NIfTI headers; files that are cut off, damaged, or something else
    test_fuzz_descriptions.py  the JSON of --dataset
    test_fuzz_flags.py         command lines, drawn from the parsers themselves
    test_fuzz_checkpoints.py   damaged checkpoints, and whole ones with other content

Whatever a user does wrong, a script ends by itself with status 0, 2 (a mistake) or, where prediction is to go on, 1
(some cases failed); stopped by --max_hours with 75. With 1 and 2 every line on stderr that is no progress bar begins
with "error: ", after the script's name where argparse tells it. Exceptions that leave a script fail the test, and so do
examples that take longer than ``SECONDS`` or more memory than ``MEMORY``.

``make fuzz`` draws ``FUZZ_FACTOR`` times as many examples as the test suite, which always draws the same.
"""

import contextlib
import io
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from conftest import REPOSITORY
from hypothesis import HealthCheck, Phase, event, settings

FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
SECONDS = 60  # an example takes one or two
MEMORY = 4 * 2**30  # bytes more than there were in use before
MISTAKE = re.compile(r"(main_train\.py: |test_seg\.py: |check_data: )?error: ")
PROGRESS_BAR = re.compile(r"[^|]*: +(\d+%\||\d+it \[)")


class HangsError(BaseException):
    """An example took too long. No Exception: what goes on when a case fails has to stop for it."""


class Result(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str


def examples(count: int) -> settings:
    """The settings of a test that draws ``count`` examples in the test suite."""
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        phases=(Phase.reuse, Phase.generate),  # examples are small as drawn, and shrinking them takes minutes
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    )


def end_well(script: str, *argv: object, statuses: tuple[int, ...] = (0, 2)) -> Result:
    """Run a script as its own program would run, and check how it ends.

    Args:
        script: its path in the repository.
        argv: its arguments.
        statuses: that are acceptable.
    """
    result = run_script(script, *map(str, argv))
    event(f"{script}: status {result.status}")
    assert result.status in statuses, result
    assert "Traceback" not in result.err, result.err
    if result.status in (1, 2):
        lines = [line.rpartition("\r")[2] for line in result.err.replace("\r\n", "\n").split("\n")]
        told = [line for line in lines if line.strip() and not PROGRESS_BAR.match(line)]
        assert told, "ends without a word"
        assert all(MISTAKE.match(line) for line in told), told
    return result


def run_script(script: str, *argv: str) -> Result:
    """Run a script as a program in this process, with streams that are as strict as a terminal's."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", mode) for mode in ("strict", "backslashreplace"))
    try:
        with (
            mock.patch.object(sys, "argv", [script, *argv]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            bounded(),
        ):
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except HangsError as hang:
        raise AssertionError(f"has not ended after {SECONDS} s") from hang
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Result(status, *texts)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """A block that may take ``SECONDS`` and ``MEMORY``; what needs more raises HangsError or MemoryError in it."""
    ended, example = threading.Event(), threading.get_ident()

    def watch() -> None:
        while not ended.wait(SECONDS):  # again and again: an exception in a finaliser is lost
            signal.pthread_kill(example, signal.SIGUSR1)

    def give_up(*_: object) -> None:
        raise HangsError

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    handler = signal.signal(signal.SIGUSR1, give_up)  # SIGALRM is for --max_hours
    watcher = threading.Thread(target=watch, daemon=True)
    resource.setrlimit(resource.RLIMIT_DATA, (used_memory() + MEMORY, hard))
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.signal(signal.SIGUSR1, handler)


def used_memory() -> int:
    """Bytes that this process has asked for (what RLIMIT_DATA counts)."""
    (line,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


@contextlib.contextmanager
def copies(**folders: Path) -> Iterator[Path]:
    """A temporary folder with named copies of folders, and the working directory two folders below it."""
    with tempfile.TemporaryDirectory() as name:
        for copy, folder in folders.items():
            shutil.copytree(folder, Path(name, copy))
        below = Path(name, "far", "below")
        below.mkdir(parents=True)
        with contextlib.chdir(below):
            yield Path(name)


def predict_arguments(root: Path, output: Path, trained: Path, *more: object) -> list[object]:
    """Prediction of the validation images in seconds."""
    weights = ("--trained_weights", trained / "best_metric_model.pth")
    return ["--root", root, "--output", output, *weights, "--gpu", "cpu", "--num_workers", "0", *more]

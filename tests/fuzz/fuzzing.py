"""Runs of the scripts on random mistakes: acceptable exit statuses, number of examples, limits of time and memory.

The tests in this folder draw their examples with Hypothesis:

    test_fuzz_volumes.py       NIfTI headers; files that are truncated, damaged, or of another kind
    test_fuzz_descriptions.py  the JSON of --dataset
    test_fuzz_flags.py         command lines, drawn from the parsers themselves
    test_fuzz_checkpoints.py   damaged checkpoints, and valid files with other content

For every mistake of a user, a script ends by itself with status 0, 2 (a mistake), 1 (a prediction in which some cases
failed) or 75 (stopped by --max_hours). With 1 and 2, every line on stderr except progress bars begins with "error: ",
after the script's name if argparse reports it. A test fails if an exception leaves a script, or if an example takes
longer than ``SECONDS`` or more memory than ``MEMORY``.

``make fuzz`` draws ``FUZZ_FACTOR`` times as many examples as the test suite, which always draws the same ones.
"""

import contextlib
import io
import os
import re
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from conftest import run_here
from hypothesis import HealthCheck, Phase, event, settings

FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
SECONDS = 60  # an example takes one or two
MEMORY = 4 * 2**30  # bytes in addition to those in use before
MISTAKE = re.compile(r"(main_train\.py: |test_seg\.py: |check_data: )?error: ")
PROGRESS_BAR = re.compile(r"[^|]*: +(\d+%\||\d+it \[)")


class HangsError(BaseException):
    """Timeout of an example. Not an Exception, so that code that continues after a failed case stops as well."""


class Result(NamedTuple):
    """Exit status and output of a script."""

    status: int
    out: str
    err: str


def examples(count: int) -> settings:
    """Build the settings of a test that draws ``count`` examples in the test suite."""
    return settings(
        max_examples=count * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        phases=(Phase.reuse, Phase.generate),  # examples are small already, and shrinking takes minutes
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    )


def end_well(script: str, *argv: object, statuses: tuple[int, ...] = (0, 2)) -> Result:
    """Run a script as a program, and check how it ends.

    Args:
        script: path in the repository.
        argv: arguments of the script.
        statuses: acceptable exit statuses.
    """
    result = run_script(script, *map(str, argv))
    event(f"{script}: status {result.status}")
    assert result.status in statuses, result
    assert "Traceback" not in result.err, result.err
    if result.status in (1, 2):
        lines = [line.rpartition("\r")[2] for line in result.err.replace("\r\n", "\n").split("\n")]
        messages = [line for line in lines if line.strip() and not PROGRESS_BAR.match(line)]
        assert messages, "ends without a message"
        assert all(MISTAKE.match(line) for line in messages), messages
    return result


def run_script(script: str, *argv: str) -> Result:
    """Run a script as a program in this process, with streams that are as strict as those of a terminal."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", mode) for mode in ("strict", "backslashreplace"))
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            bounded(),
        ):
            status = run_here(script, *argv)
    except HangsError as hang:
        raise AssertionError(f"did not end within {SECONDS} s") from hang
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Result(status, *texts)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Limit a block to ``SECONDS`` and ``MEMORY``; beyond them HangsError or MemoryError is raised in it."""
    ended, example = threading.Event(), threading.get_ident()

    def watch() -> None:
        while not ended.wait(SECONDS):  # repeatedly, since an exception in a finaliser is lost
            signal.pthread_kill(example, signal.SIGUSR1)

    def give_up(*_: object) -> None:
        raise HangsError

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    handler = signal.signal(signal.SIGUSR1, give_up)  # SIGALRM is used by --max_hours
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
    """Read the bytes that this process has allocated, as RLIMIT_DATA counts them."""
    (line,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


@contextlib.contextmanager
def copies(**folders: Path) -> Iterator[Path]:
    """Make a temporary folder with named copies of folders, and change to a working directory two folders below it."""
    with tempfile.TemporaryDirectory() as name:
        for copy, folder in folders.items():
            shutil.copytree(folder, Path(name, copy))
        below = Path(name, "far", "below")
        below.mkdir(parents=True)
        with contextlib.chdir(below):
            yield Path(name)


def predict_arguments(root: Path, output: Path, trained: Path, *more: object) -> list[object]:
    """Build the arguments of a prediction of the validation images, which takes seconds."""
    weights = ("--trained_weights", trained / "best_metric_model.pth")
    return ["--root", root, "--output", output, *weights, "--gpu", "cpu", "--num_workers", "0", *more]

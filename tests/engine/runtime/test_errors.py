"""Exit of a script: user errors are one line with status 2, and bugs keep their traceback."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from torch.utils.data import DataLoader, Dataset

from engine.runtime.errors import STOPPED, InputError, OneLineParser, Stopped, run

ARGS = OneLineParser("script").parse_args([])


def fail_with(error):
    def main(args):
        raise error

    return main


def test_every_line_of_an_input_error_is_reported(capsys):
    assert run(fail_with(InputError("one\ntwo")), ARGS) == 2
    assert capsys.readouterr().err == "error: one\nerror: two\n"


def allocate_too_much(args):
    torch.empty(2**60)


def wrap_as_monai_does(args):
    try:
        raise MemoryError("Unable to allocate 9 GiB")
    except MemoryError as error:
        raise RuntimeError("applying transform <Spacingd>") from error


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError("case_1: found nothing, expected a volume")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_input_error_in_a_loading_process_is_one_line(capsys, workers):
    assert run(lambda args: list(DataLoader(Broken(), num_workers=workers)), ARGS) == 2
    assert capsys.readouterr().err == "error: case_1: found nothing, expected a volume\n"


@pytest.mark.parametrize(
    "main",
    [
        allocate_too_much,
        fail_with(MemoryError()),
        fail_with(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nGPU 0 has ...")),
        fail_with(RuntimeError("DataLoader worker (pid 9) is killed by signal: Killed. ")),
        fail_with(RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED")),
        wrap_as_monai_does,
    ],
)
def test_lack_of_memory_is_one_line_that_names_the_flag_to_lower(capsys, main):
    assert run(main, ARGS, to_lower="--batch_size") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: out of memory (")
    assert message.endswith("), expected lower --batch_size\n")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker is killed by signal: Bus error. ... out of shared memory",
        "Caught RuntimeError in DataLoader worker process 0.\n... file </torch_9_1_0>: No space left on device (28)",
    ],
)
def test_lack_of_shared_memory_is_told_from_lack_of_memory(capsys, text):
    assert run(fail_with(RuntimeError(text)), ARGS, to_lower="--batch_size") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: out of shared memory ({text.splitlines()[0]}), expected a larger /dev/shm")
    assert message.endswith("--num_workers 0\n")
    assert message.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_one_line(capsys, number):
    reason = os.strerror(number)
    assert run(fail_with(OSError(number, reason, "/data/log")), ARGS) == 2
    assert capsys.readouterr().err == f"error: /data/log: {reason}, expected a disk with space\n"


PRINTS_MUCH = """
import sys
from engine.runtime.errors import run
sys.exit(run(lambda _: [print("a line", number) for number in range(int(sys.argv[1]))], None))
"""


@pytest.mark.parametrize("lines", [3, 100_000])
def test_a_reader_that_closes_the_pipe_is_not_an_error(lines):
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS_MUCH, str(lines)], cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, b"")


def test_a_broken_pipe_that_is_not_stdout_keeps_its_traceback(capfd):
    with pytest.raises(BrokenPipeError):
        run(fail_with(BrokenPipeError(errno.EPIPE, "of a socket")), ARGS)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.EIO, "broken"), ValueError("ours")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run(fail_with(error), ARGS, to_lower="--batch_size")


def test_a_second_request_does_not_interrupt_the_end_of_a_process(capsys):
    assert run(fail_with(Stopped("Ctrl-C")), ARGS) == STOPPED
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_parser_reports_in_one_line(capsys):
    parser = OneLineParser("script")
    parser.add_argument("--number", type=int)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--number", "x"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_file_names_that_are_not_valid_text_can_be_printed(capfdbinary):
    assert run(lambda args: print("case_\udcff"), ARGS) == 0
    assert capfdbinary.readouterr().out == b"case_\\udcff\n"

"""Who may stop what: requests at once or later, and processes that only their parent ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from engine.runtime.errors import Stopped
from engine.runtime.stop_requests import StopRequests, ignore_requests, resume_command

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_request_stops_at_once(number):
    with pytest.raises(Stopped), StopRequests():
        signal.raise_signal(number)


def test_only_the_first_request_counts_where_work_is_not_to_be_cut():
    with StopRequests() as stop, stop.later():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.reason == "SIGTERM"
        with pytest.raises(Stopped, match="SIGTERM"), stop.at_once():
            raise AssertionError("not stopped")
    assert stop.reason == "SIGTERM"


def test_a_block_within_may_be_cut():
    with StopRequests() as stop, stop.later():
        with stop.at_once():
            pass
        with pytest.raises(Stopped), stop.at_once():
            signal.raise_signal(signal.SIGINT)


def test_handlers_and_timer_are_those_of_before_afterwards():
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopRequests(max_hours=1):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(3600, abs=5)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_time_is_up_is_a_request():
    with pytest.raises(Stopped, match="--max_hours"), StopRequests(max_hours=0.01 / 3600):
        time.sleep(10)


def test_the_command_that_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["main_train.py", "--output", "a run"])
    monkeypatch.setattr(sys, "executable", "python")
    assert resume_command(tmp_path) == "python main_train.py --output 'a run'"
    (tmp_path / "previous_checkpoint.pth").touch()
    assert resume_command(tmp_path) == "python main_train.py --output 'a run' --resume"
    monkeypatch.setattr(sys, "argv", ["main_train.py", "--resume"])
    assert resume_command(tmp_path) == "python main_train.py --resume"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert resume_command(tmp_path) == "torchrun ... main_train.py --resume"


def wait_long(started):
    ignore_requests()
    started.set()
    time.sleep(60)


def test_a_process_that_loads_data_is_ended_by_its_parent_alone():
    started = multiprocessing.Event()
    process = multiprocessing.Process(target=wait_long, args=(started,), daemon=True)
    process.start()
    assert started.wait(10)
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
    process.join(0.5)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


STOPPED_WHILE_A_LOADER_STARTS = """
import os, signal, sys, time
from torch.utils.data._utils import worker
from engine.runtime.errors import run
from engine.runtime.stop_requests import StopRequests
from engine.data.loading import Loader

number, block = int(sys.argv[1]), sys.argv[2]
generate_state = worker._generate_state

def stop_all(*args):  # what a process that loads data does before it comes to its init function
    os.killpg(0, number)
    time.sleep(0.2)
    return generate_state(*args)

def main(_):
    with StopRequests() as stop, stop.later():
        with getattr(stop, block)():
            for number in Loader(range(1000), num_workers=1):
                time.sleep(0.05)
                if number == 10:
                    break
        stop.answer()

worker._generate_state = stop_all
sys.exit(run(main, None))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("block", ["later", "at_once"])
def test_a_request_to_the_whole_group_while_a_loader_starts(number, block):
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_A_LOADER_STARTS, str(int(number)), block],
        cwd=REPOSITORY,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 75, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("stopped by ")
    assert "Traceback" not in ended.stderr


HOLDS_ITS_LOADER = """
from engine.data.loading import Loader
held = iter(Loader(range(1000), num_workers=1))
next(held)
raise SystemExit(3)
"""


def test_a_script_that_ends_with_a_loader_in_its_hands_does_not_hang():
    ended = subprocess.run([sys.executable, "-c", HOLDS_ITS_LOADER], cwd=REPOSITORY, timeout=60, env={**os.environ})
    assert ended.returncode == 3

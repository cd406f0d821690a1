"""Stop requests are noted for code that polls, and only their parent stops loading processes."""

import multiprocessing
import signal
import subprocess
import sys
import time

import pytest

from engine.runtime.errors import Stopped
from engine.runtime.stop_requests import StopRequests, ignore_stop_signals, resume_command

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_request_is_noted_and_raised_only_where_the_code_polls(number):
    with StopRequests() as stop:
        stop.raise_if_requested()
        signal.raise_signal(number)
        with pytest.raises(Stopped):
            stop.raise_if_requested()


def test_only_the_first_request_counts():
    with StopRequests() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.reason == "SIGTERM"


@pytest.mark.parametrize("limit", ["--max_hours", "--budget_h"])
def test_the_end_of_the_time_is_named_by_its_flag(limit):
    with StopRequests(0.01 / 3600, limit) as stop:
        time.sleep(0.05)
        with pytest.raises(Stopped, match=f"^{limit}$"):
            stop.raise_if_requested()


def test_handlers_and_timer_are_restored():
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopRequests(max_hours=1):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(3600, abs=5)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_resume_command(monkeypatch, tmp_path):
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
    ignore_stop_signals()
    started.set()
    time.sleep(60)


def test_only_its_parent_stops_a_loading_process():
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

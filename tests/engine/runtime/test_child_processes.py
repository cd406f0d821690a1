"""Scripts as processes: exit statuses, requests to stop that are passed on, and locks."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from engine.runtime.child_processes import describe_status, locked, run_script
from engine.runtime.errors import InputError, Stopped
from engine.runtime.stop_requests import StopRequests

WAIT = "import time, signal, sys; signal.signal(15, lambda *_: sys.exit(75)); print(1, flush=True); time.sleep(60)"


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_the_exit_status_is_returned(tmp_path, status):
    with locked(tmp_path, "--output") as lock, StopRequests() as stop:
        assert run_script([sys.executable, "-c", f"raise SystemExit({status})"], stop, lock) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_passed_on(tmp_path, number):
    with locked(tmp_path, "--output") as lock, StopRequests() as stop:
        timer = Timer(1, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(Stopped):
            run_script([sys.executable, "-c", WAIT], stop, lock)
    with locked(tmp_path, "--output"):  # the script, which held the lock, has ended
        pass


def test_after_a_request_to_stop_no_script_is_started(tmp_path):
    with locked(tmp_path, "--output") as lock, StopRequests() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            run_script([sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"], stop, lock)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_locked_until_the_last_process_has_ended(tmp_path):
    folder = tmp_path / "new"
    running = pytest.raises(InputError, match=r"--output: found a process that runs in .*new")
    with locked(folder, "--output"), running, locked(folder, "--output"):
        pass
    with locked(folder, "--output"):
        pass


def test_a_lock_lasts_until_those_that_inherit_it_have_ended(tmp_path):
    with locked(tmp_path, "--output") as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    with pytest.raises(InputError, match="found a process"), locked(tmp_path, "--output"):
        pass
    child.kill()
    child.wait()
    with locked(tmp_path, "--output"):
        pass


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("engine.runtime.child_processes.flock", refuse)
    with locked(tmp_path, "--output"):
        pass
    assert capsys.readouterr().out.startswith(f"warning: {tmp_path} cannot be locked (Function not implemented)")


def test_a_folder_that_cannot_be_made_is_one_line():
    refused = pytest.raises(InputError, match="--output: /dev/null/x cannot be made")
    with refused, locked(Path("/dev/null/x"), "--output"):
        pass


def test_statuses_are_described():
    assert describe_status(2) == "ended with exit status 2"
    assert describe_status(-9) == "was killed by SIGKILL"

"""Logging of training steps: skipped steps are counted, and too many in a row end the run."""

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.runtime.errors import InputError
from engine.training.log import SKIPS_IN_A_ROW, NoLog, StepMonitor, TensorBoardLog
from engine.training.state import Progress
from engine.training.step import StepResult


def log_steps(skipped, progress=None):
    """Log one step for each element of ``skipped``; return the progress."""
    monitor = StepMonitor(NoLog(), progress or Progress())
    for iteration, bad in enumerate(skipped, start=1):
        monitor.add(iteration, StepResult(torch.tensor(torch.nan if bad else 0.5), torch.tensor(bad)), 1e-4, 0.0, 0.0)
    monitor.finish()
    return monitor.progress


def test_skipped_steps_are_counted_and_reported(capsys):
    progress = log_steps([False, True, True, False, True])
    assert (progress.skipped, progress.skipped_in_a_row) == (3, 1)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 3
    assert "at iteration 5, 3 steps skipped" in warnings[-1]


def test_too_many_skipped_steps_in_a_row_end_the_run():
    almost = [True] * (SKIPS_IN_A_ROW - 1)
    assert log_steps([*almost, False, *almost]).skipped_in_a_row == SKIPS_IN_A_ROW - 1
    with pytest.raises(InputError, match=f"found {SKIPS_IN_A_ROW} iterations in a row, up to {SKIPS_IN_A_ROW + 1}"):
        log_steps([False, *almost, True])
    with pytest.raises(InputError, match="up to 1,"):  # the other steps were skipped before the run was resumed
        log_steps([True], Progress(skipped_in_a_row=SKIPS_IN_A_ROW - 1))


class ListLog(NoLog):
    """Log that stores its entries in a list."""

    def __init__(self):
        self.entries = []

    def scalars(self, values, step):
        self.entries.append((step, values))


def test_a_step_is_logged_after_the_next_one_has_started():
    log = ListLog()
    monitor = StepMonitor(log, Progress())
    for iteration in (1, 2):
        monitor.add(iteration, StepResult(torch.tensor(0.5 * iteration), torch.tensor(False)), 1e-4, 0.0, 0.25)
        assert [step for step, _ in log.entries] == list(range(1, iteration))
    monitor.finish()
    monitor.finish()
    assert [(step, values["train/loss"]) for step, values in log.entries] == [(1, 0.5), (2, 1.0)]
    assert log.entries[0][1].keys() == {"train/loss", "train/lr", "train/data_wait_s", "train/compute_s"}


def test_the_last_step_is_logged_again_if_its_evaluation_is_pending():
    """Resuming discards whole steps; an evaluation, which may be partly logged, has the number of its last step."""
    log = ListLog()
    StepMonitor(log, Progress(iteration=4, awaits_evaluation=True, scalars={"loss": 0.5}))
    assert log.entries == [(4, {"train/loss": 0.5})]


def test_tensorboard_has_scalars_and_pictures(tmp_path):
    with TensorBoardLog(tmp_path, first_step=1) as log:
        log.scalars({"dice/mean": 0.5}, 3)
        log.figure("case", Figure(), 3)
        log.flush()
        events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("dice/mean")] == [(3, 0.5)]
    assert [event.step for event in events.Images("case")] == [3]

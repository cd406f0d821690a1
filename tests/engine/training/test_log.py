"""The monitor of training steps: skipped ones are counted, and too many in a row end the run."""

import pytest
import torch

from engine.runtime.errors import InputError
from engine.training.log import SKIPS_IN_A_ROW, NoLog, StepMonitor
from engine.training.state import Progress
from engine.training.step import StepResult


def log_steps(skipped, progress=None):
    """Log one step for each of ``skipped``; the progress afterwards."""
    monitor = StepMonitor(NoLog(), progress or Progress())
    for iteration, bad in enumerate(skipped, start=1):
        monitor.add(iteration, StepResult(torch.tensor(torch.nan if bad else 0.5), torch.tensor(bad)), 1e-4, 0.0, 0.0)
    monitor.finish()
    return monitor.progress


def test_skipped_steps_are_counted_and_told(capsys):
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
    with pytest.raises(InputError, match="up to 1,"):  # the others were before the run was resumed
        log_steps([True], Progress(skipped_in_a_row=SKIPS_IN_A_ROW - 1))

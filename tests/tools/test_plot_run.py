"""Plots of a run."""

import pytest

from engine.runtime.errors import run
from tools import plot_run


def test_curve_and_masks_are_drawn(trained, tmp_path):
    assert run(plot_run.main, plot_run.parse_args(["--run", str(trained), "--output", str(tmp_path)])) == 0
    for name in ("curve.png", "masks.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.parametrize("logs", [False, True])
def test_folder_that_is_not_a_run(tmp_path, capsys, logs):
    if logs:
        (tmp_path / "tensorboard").mkdir()
    assert run(plot_run.main, plot_run.parse_args(["--run", str(tmp_path), "--output", str(tmp_path)])) == 2
    assert "error: --run: found no" in capsys.readouterr().err

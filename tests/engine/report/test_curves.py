"""Curves of a log: read, averaged, and drawn whatever they hold."""

import numpy as np
import pytest

from engine.report.charts import chart_dice_curves, chart_loss, chart_rate, chart_steps, chart_wait
from engine.report.curves import DRAWN, Curve, read_logs, running_mean, thin
from engine.report.figures import CHARTS, drawing, encode_svg
from engine.training.log import TensorBoardLog


def curve(values):
    return Curve(np.arange(1, len(values) + 1), np.array(values, float))


def test_logs_are_read_with_their_last_pictures_and_times(trained):
    logs = read_logs(trained / "tensorboard")
    assert logs.scalars["train/loss"].steps.tolist() == list(range(1, 61))
    assert logs.scalars["dice/left"].steps.tolist() == [20, 40, 60]
    assert logs.pictures["validation case"].startswith(b"\x89PNG")
    start, end = logs.times
    assert 0 < end - start < 600


def test_a_folder_without_logs_has_no_curves(tmp_path):
    assert read_logs(tmp_path / "missing") == ({}, {}, None)


def test_a_resumed_run_has_each_step_once(tmp_path):
    for first, last in ((1, 4), (3, 6)):
        with TensorBoardLog(tmp_path, first_step=first) as log:
            for step in range(first, last + 1):
                log.scalars({"train/loss": float(first)}, step)
    loss = read_logs(tmp_path).scalars["train/loss"]
    assert (loss.steps.tolist(), loss.values.tolist()) == ([1, 2, 3, 4, 5, 6], [1, 1, 3, 3, 3, 3])


def test_long_curves_are_averaged():
    thinned = thin(curve(range(10 * DRAWN)))
    assert len(thinned.steps) == DRAWN
    assert thinned.values[0] == pytest.approx(4.5)
    short = curve([1, 2])
    assert thin(short) is short


def test_running_mean_leaves_out_what_is_not_finite():
    smooth, width = running_mean(curve([1, np.nan, 3, np.inf, *[2] * 30]).finite())
    assert width == 20
    assert np.isfinite(smooth.values).all()
    assert smooth.values[0] == pytest.approx(2)
    assert running_mean(curve([np.nan]).finite())[1] == 0


@pytest.mark.parametrize("values", [[0.5], [np.nan, np.nan], [0.0] * 5, list(range(1500))])
def test_every_curve_is_drawn(values):
    one = curve(values)
    with drawing(CHARTS):
        for figure in (chart_loss(one), chart_rate(one), chart_dice_curves({"dice/mean": one})):
            assert encode_svg(figure).startswith("data:image/svg+xml;base64,")
        if np.isfinite(values).all():
            for figure in (chart_wait(one, one), chart_steps(one, one)):
                assert encode_svg(figure).startswith("data:image/svg+xml;base64,")

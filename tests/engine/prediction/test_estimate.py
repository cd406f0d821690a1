"""The line about a run's windows and time, from the headers of its images."""

from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from engine.data.cases import make_case
from engine.data.datasets import DATASETS
from engine.prediction import estimate
from engine.prediction.ensemble import Ensemble, Member
from engine.prediction.estimate import estimate_work, find_shape
from engine.prediction.sliding_window import SlidingWindow

AMOS = DATASETS["amos"]  # spacing 1.5 x 1.5 x 2 mm


@pytest.fixture
def cases(tmp_path):
    """Write a volume of 30 x 61 x 40 mm whose axes run A, L, S, and a file that is none."""
    affine = np.array([[0, -2.0, 0, 0], [1.5, 0, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((20, 31, 10), np.int16), affine), tmp_path / "good.nii.gz")
    (tmp_path / "bad.nii.gz").write_text("nothing")
    return [make_case(name, str(tmp_path / f"{name}.nii.gz")) for name in ("good", "bad")]


def make_ensemble(mirrored=()):
    network = nn.Conv3d(1, 2, 3, padding=1)
    network.in_chans = 1
    window = SlidingWindow((8, 8, 8), 4, 0.5, torch.device("cpu"), partial(torch.autocast, "cpu", enabled=False))
    return Ensemble([Member(network, window, "off")], mirrored)


def test_the_shape_is_that_of_the_networks_grid(cases):
    assert find_shape(cases[0], AMOS) == (41, 20, 19)
    assert find_shape(cases[1], AMOS) is None


def test_a_run_is_estimated_from_one_window(cases, monkeypatch):
    monkeypatch.setattr(estimate, "measure_window", lambda member: 0.5)
    windows = 10 * 4 * 4
    assert (
        estimate_work(cases, AMOS, make_ensemble())
        == f"at most {windows} windows in 1 case: about 80 s of network time"
    )
    line = estimate_work([cases[0]] * 3, AMOS, make_ensemble((0, 1)))
    assert line == f"at most {12 * windows} windows in 3 cases: about 16 min of network time"


def test_a_short_run_is_not_estimated(cases, monkeypatch):
    monkeypatch.setattr(estimate, "WORTHWHILE", 161)
    assert estimate_work(cases, AMOS, make_ensemble()) is None
    assert estimate_work([], AMOS, make_ensemble()) is None


def test_a_window_takes_time(monkeypatch):
    times = iter([10.0, 12.5])
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(times))
    (member,) = make_ensemble().members
    assert estimate.measure_window(member) == 2.5

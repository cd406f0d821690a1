"""Measurements of a step, in this process or in its own, which leave this process unchanged."""

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import Step, measure_step, native_convolutions
from engine.weights.checkpoints import NetworkConfig
from networks.large_kernel_conv import DIRECT_COST, choose_method
from networks.layers import ChannelsLastInstanceNorm3d


def make_step(roi_size=(32, 32, 32), **options):
    config = NetworkConfig("REP3D", 1, 3, roi_size, {"feat_size": (4, 4, 4, 4), "kernel_size": 5})
    return Step(config, 1, torch.device("cpu"), None, **options)


@pytest.mark.parametrize("own_process", [False, True])
def test_the_first_of_several_runs_does_not_count(own_process):
    found = measure_step(make_step(), 2, own_process=own_process)
    assert found["reason"] is None
    assert len(found["steps_s"]) == 2
    assert min(found["steps_s"]) <= found["step_s"] <= max(found["steps_s"])
    assert found["peak_bytes"] > 1e8


def test_a_slow_first_run_is_no_measurement(monkeypatch):
    """The first run may compile for a minute."""
    runs = iter([(60.0, 10), (1.0, 10), (1.5, 20), (1.0, 20)])
    monkeypatch.setattr(measure, "timed_step", lambda _: lambda: next(runs))
    assert measure_step(make_step(), 5, limit_s=2) == {
        "step_s": 1.25,
        "steps_s": [1.0, 1.5],
        "first_s": 60.0,
        "peak_bytes": 20,
        "reason": None,
    }


def test_a_step_longer_than_the_limit_is_measured_once(monkeypatch):
    runs = iter([(5.0, 10), (4.0, 10)])
    monkeypatch.setattr(measure, "timed_step", lambda _: lambda: next(runs))
    assert measure_step(make_step(), 5, limit_s=2)["steps_s"] == [4.0]


def test_a_first_run_that_is_long_enough_counts(monkeypatch):
    runs = iter([(5.0, 10)])
    monkeypatch.setattr(measure, "timed_step", lambda _: lambda: next(runs))
    assert measure_step(make_step(), 5, long_s=5)["steps_s"] == [5.0]


@pytest.mark.parametrize("own_process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_that_does_not_fit_in_memory_has_a_reason(own_process):
    huge = make_step(roi_size=(16 * 2**12,) * 3)  # a petabyte
    found = measure_step(huge, 1, own_process=own_process)
    assert found["reason"].startswith("out of memory")
    assert {found[name] for name in ("step_s", "steps_s", "first_s", "peak_bytes")} == {None}


def test_other_errors_of_a_step_are_raised(monkeypatch):
    def broken(_):
        raise RuntimeError("something else")

    monkeypatch.setattr(measure, "timed_step", broken)
    with pytest.raises(RuntimeError, match="something else"):
        measure_step(make_step(), 1)


def test_native_convolutions_last_as_long_as_the_block():
    costs = dict(DIRECT_COST)
    x, weight = torch.empty(1, 48, 48, 48, 48, device="meta"), torch.empty(48, 1, 21, 21, 21, device="meta")
    assert choose_method(x, weight, "backward") == "fft"
    with native_convolutions():
        assert choose_method(x, weight, "backward") == choose_method(x, weight, "forward") == "direct"
    assert costs == DIRECT_COST


@pytest.mark.parametrize("layout", [None, "plain", "channels_last", "channels_last_kernels"])
def test_a_step_has_the_layout_that_is_asked_for(layout, monkeypatch):
    placed = []
    to_device = measure.to_device
    monkeypatch.setattr(measure, "to_device", lambda *arguments: placed.append(to_device(*arguments)) or placed[-1])
    measure.prepare(make_step(layout=layout))()
    kernels = [parameter for parameter in placed[0].parameters() if parameter.dim() == 5]
    kernels = [kernel for kernel in kernels if min(kernel.shape[1:3]) > 1]  # others have the same layout either way
    assert kernels
    for kernel in kernels:
        assert kernel.is_contiguous(memory_format=torch.channels_last_3d) == (layout != "plain")
    own_norms = any(isinstance(module, ChannelsLastInstanceNorm3d) for module in placed[0].modules())
    assert own_norms == (layout in (None, "channels_last"))  # the default of a CPU is channels last

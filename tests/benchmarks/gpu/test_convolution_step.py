"""The floors agree with those calculated by hand, and the fitted costs choose the faster method."""

import pytest
import torch

from benchmarks.gpu.costs import Comparison, fit_costs, ready_to_paste
from benchmarks.gpu.steps.convolution import Problem, fft_lengths, floors
from benchmarks.gpu.timing import count_sets, device_seconds

H100_BYTES_PER_S = 3.0e12
STAGE_1 = Problem(samples=1, channels=48, side=48, kernel_size=21, precision="float32")


def test_floors_are_those_calculated_by_hand():
    """Stage 1: 15 microseconds to read and write its tensors, 0.25 and 0.4 ms for the traffic of the FFT."""
    found = floors(STAGE_1, H100_BYTES_PER_S)
    assert found["tensors"]["forward"] == pytest.approx(15e-6, rel=0.05)
    assert 0.2e-3 < found["fft"]["forward"] < 0.35e-3
    assert 0.25e-3 < found["fft"]["backward"] < 0.45e-3
    for name in ("tensors", "fft", "dft"):
        passes = found[name]
        assert max(passes["dx"], passes["dw"]) < passes["backward"] < passes["dx"] + passes["dw"]


def test_lengths_are_those_of_the_convolution():
    assert fft_lengths(STAGE_1) == [60, 60, 60]
    assert fft_lengths(Problem(1, 4, 6, 21, "bf16")) == [12, 12, 12]  # 6 + 5: taps beyond 11 never reach data


def compare(ratio, direct_s, fft_s):
    return Comparison(volumes=10, multiply_adds=ratio * 1e6, fft_work=1e6, direct_s=direct_s, fft_s=fft_s)


def choices(costs, comparisons):
    return [
        "direct" if costs.direct * each.multiply_adds <= costs.fft * each.fft_work else "fft" for each in comparisons
    ]


@pytest.mark.parametrize("faster", [["direct"] * 3, ["direct", "direct", "fft"], ["direct", "fft", "fft"], ["fft"] * 3])
def test_costs_choose_the_faster_method(faster):
    seconds = {"direct": (1e-3, 2e-3), "fft": (2e-3, 1e-3)}
    comparisons = [compare(ratio, *seconds[name]) for ratio, name in zip((1, 10, 100), faster, strict=True)]
    costs = fit_costs(comparisons)
    assert choices(costs, comparisons) == faster
    assert costs.over_best == 1
    assert all(cost > 0 for cost in (costs.direct, costs.fft))


def test_if_no_border_fits_the_most_expensive_mistakes_are_avoided():
    comparisons = [compare(1, 1e-3, 2e-3), compare(10, 5e-3, 1e-3), compare(100, 1e-3, 1.1e-3)]
    costs = fit_costs(comparisons)
    assert choices(costs, comparisons) == ["direct", "fft", "fft"]
    assert costs.over_best == pytest.approx(3.1 / 3)


def test_constants_are_entries_of_the_dictionaries():
    costs = fit_costs([compare(1, 1e-3, 2e-3), compare(10, 5e-3, 1e-3)])
    direct, fft = ready_to_paste({"forward": costs, "backward": costs})
    names = {"DIRECT_COST": {}, "FFT_COST": {}}
    exec(f"{direct}\n{fft}", names)
    assert names["FFT_COST"]["cuda", "forward"] == pytest.approx(costs.fft, rel=1e-2)
    assert names["DIRECT_COST"]["cuda", "backward"] == pytest.approx(costs.direct, rel=1e-2)


def test_input_sets_take_turns_on_a_cpu():
    seen = []
    seconds = device_seconds(
        lambda x: seen.append(x.item()), [(torch.tensor(1),), (torch.tensor(2),)], torch.device("cpu")
    )
    assert 0 < seconds < 1e-2
    assert len(seen) > 3
    assert abs(seen.count(1) - seen.count(2)) <= 1
    assert count_sets(10, torch.device("cpu")) == 1

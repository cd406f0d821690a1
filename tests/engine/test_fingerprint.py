"""A fingerprint has in it what decides a result, and nothing that changes by itself."""

import functools
import json
import threading

import numpy as np
import pytest
import torch
from monai.transforms import Lambda, RandShiftIntensity, ScaleIntensityRange
from monai.utils import GridSampleMode

from engine.fingerprint import fingerprint


class Step:
    def __init__(self, value):
        self.value = value


def adder(step):
    return lambda value: value + step


def same(one, other):
    return json.dumps(fingerprint(one)) == json.dumps(fingerprint(other))


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: ScaleIntensityRange(0, 1, 0, 1), ScaleIntensityRange(0, 2, 0, 1)),
        (lambda: np.array([1.0, np.nan]), np.array([1.0, 2.0])),
        (lambda: np.zeros(2, np.float32), np.zeros(2, np.float64)),
        (lambda: torch.uint8, torch.int8),
        (lambda: np.float32, np.float64),
        (lambda: GridSampleMode.BILINEAR, GridSampleMode.NEAREST),
        (lambda: {"a": (1, None)}, {"a": (1, 0)}),
        (lambda: Step(1), Step(2)),
        (lambda: Lambda(adder(1)), Lambda(adder(2))),  # the same source, another closure
        (lambda: Lambda(np.copy), Lambda(np.flip)),
    ],
)
def test_equal_settings_are_equal_and_others_differ(make, other):
    assert same(make(), make())
    assert not same(make(), other)


def test_source_counts():
    def change(text):
        space = {"__name__": "test_fingerprint"}
        exec(compile(text, "made up", "exec"), space)
        return space

    # inspect finds the source of what is in a file: these two have none, and are refused.
    with pytest.raises(OSError, match="source"):
        fingerprint(change("def made_up(value): return value")["made_up"])
    one, other = fingerprint(adder(1)), fingerprint(same)
    assert one["function source"] != other["function source"]
    assert fingerprint(Step)["class source"] != fingerprint(type("Other", (Step,), {"__module__": "json"}))


def test_random_state_and_threads_leave_no_trace():
    used = RandShiftIntensity(0.1, prob=1.0)
    used.set_random_state(3)
    used(torch.zeros(1, 2))
    used.tracing = threading.local()
    assert "RandomState" not in json.dumps(fingerprint(used))
    assert "0x" not in json.dumps(fingerprint(used))


@pytest.mark.parametrize("value", [functools.partial(adder, 1), [].append, {1}, b"1", threading, object()])
def test_what_has_no_lasting_form_is_refused(value):
    with pytest.raises(TypeError, match="expected parameters that can be written"):
        fingerprint(Step(value))

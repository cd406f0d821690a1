"""Fingerprints of transforms depend on everything that affects a result, and on nothing else."""

import ast
import functools
import hashlib
import inspect
import json
import re
import sys
import threading
from types import FunctionType

import numpy as np
import pytest
import torch
from monai.transforms import Lambda, RandShiftIntensity, ScaleIntensityRange
from monai.utils import GridSampleMode

from engine.data.cache import first_random
from engine.data.crops import CountCandidatesd, PadToSized
from engine.data.datasets import DATASETS, LabelValues
from engine.data.fingerprint import fingerprint
from engine.data.intensity import ScaleChannelsd
from engine.data.load_volume import HeaderReader, LoadVolumed
from load_datasets_transforms import AboveMinimum, training_pipelines

OWN = ("engine", "load_datasets_transforms")


class Step:
    VERSION = 1

    def __init__(self, value):
        self.value = value


class Adder:
    VERSION = 1

    def __init__(self, step):
        self.step = step

    def __call__(self, value):
        return value + self.step


class Changed(Step):
    VERSION = 1


class Unversioned(Step):
    pass


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
        (lambda: Lambda(Adder(1)), Lambda(Adder(2))),
        (lambda: Lambda(np.copy), Lambda(np.flip)),
    ],
)
def test_equal_settings_are_equal_and_others_differ(make, other):
    assert same(make(), make())
    assert not same(make(), other)


def test_versions_of_a_class_and_its_bases_count(monkeypatch):
    before = fingerprint(Changed(1))
    for kind, versions in ((Step, [1, 2]), (Changed, [2, 2])):
        monkeypatch.setattr(kind, "VERSION", 2)
        assert fingerprint(Changed(1)) == before | {"class versions": versions}


def test_a_class_may_move_to_another_module(monkeypatch):
    before = fingerprint(Step(1))
    monkeypatch.setattr(Step, "__module__", "elsewhere.new_name")
    assert fingerprint(Step(1)) == before


@pytest.mark.parametrize("value", [Unversioned(1), Unversioned])
def test_classes_of_this_project_need_their_own_version(value):
    with pytest.raises(TypeError, match="found class Unversioned without VERSION"):
        fingerprint(value)


def test_functions_of_this_project_are_refused():
    with pytest.raises(TypeError, match=r"found function .*same, expected a callable class with a VERSION"):
        fingerprint(Lambda(same))


def test_random_state_and_thread_locals_are_ignored():
    used = RandShiftIntensity(0.1, prob=1.0)
    used.set_random_state(3)
    used(torch.zeros(1, 2))
    used.tracing = threading.local()
    assert "RandomState" not in json.dumps(fingerprint(used))
    assert "0x" not in json.dumps(fingerprint(used))


@pytest.mark.parametrize("value", [functools.partial(Adder, 1), [].append, {1}, b"1", threading, object()])
def test_values_that_cannot_be_serialised_are_refused(value):
    with pytest.raises(TypeError, match="expected parameters that can be written"):
        fingerprint(Step(value))


# Classes behind every cache on a user's disk: (VERSION, digest of the source and of all code of the project it uses).
CACHED = (AboveMinimum, CountCandidatesd, HeaderReader, LabelValues, LoadVolumed, PadToSized, ScaleChannelsd)
TRANSFORMS = {
    "AboveMinimum": (1, "f75341c5ee50914e"),
    "CountCandidatesd": (2, "3daf9c85de203337"),
    "HeaderReader": (2, "da42d0f0abef0463"),
    "LabelValues": (1, "a176e2b6c887119d"),
    "LoadVolumed": (2, "ad34433a8c97b3e9"),
    "PadToSized": (1, "1da83426ecaa79ce"),
    "ScaleChannelsd": (1, "1dee4b9d10415a08"),
}


def test_source_of_the_cached_transforms_has_a_version():
    found = {kind.__name__: (kind.VERSION, hash_source(kind)) for kind in CACHED}
    assert found == TRANSFORMS, (
        "A transform behind --cache_dir changed. If its output changed, bump its VERSION, and users' "
        f"caches are rebuilt; if not, keep the VERSION. Then update this hash: TRANSFORMS = {found}"
    )


def test_no_cached_transform_is_left_out():
    training, _ = training_pipelines(DATASETS["amos"], (8, 8, 8), crop_sample=1)
    settings = json.dumps(fingerprint(training.transforms[: first_random(training)]))
    assert set(re.findall(r'"class name": "([^"]*)", "class versions"', settings)) == set(TRANSFORMS)


def hash_source(kind):
    """Hash the source of a class and, recursively, of all classes, functions and constants of this project it uses."""
    sources, left = {}, [kind]
    while left:
        item = left.pop()
        if item.__qualname__ in sources:
            continue
        sources[item.__qualname__] = inspect.getsource(item)
        names = {node.id for node in ast.walk(ast.parse(sources[item.__qualname__])) if isinstance(node, ast.Name)}
        space = vars(sys.modules[item.__module__])
        used = {name: space[name] for name in names & space.keys()}
        left += [value for value in used.values() if is_own(value)]
        sources |= {name: repr(value) for name, value in used.items() if isinstance(value, int | float | str)}
    return hashlib.blake2b(json.dumps(sources, sort_keys=True).encode(), digest_size=8).hexdigest()


def is_own(item):
    return isinstance(item, type | FunctionType) and item.__module__.partition(".")[0] in OWN

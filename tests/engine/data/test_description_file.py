"""The JSON form of descriptions: every field, every problem in a line of its own, and the schema for editors."""

import json
import re

import jsonschema
import pytest
from conftest import DESCRIPTION, REPOSITORY

from engine.data.datasets import DATASETS, DatasetDescription, LabelValues
from engine.runtime.errors import InputError
from tools import dataset_schema

BRATS = {
    "name": "brain tumours",
    "labels": {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4, "ignore": 9},
    "regions": {"core": ["enhancing", "necrosis"], "whole": ["necrosis", "oedema", "enhancing"]},
    "surface_tolerance": {"oedema": 2, "core": 0.5},
    "channels": {"T1": "_t1", "FLAIR": "_flair"},
    "spacing": [1, 1, 1],
    "intensity": {"T1": {"zscore": True}, "FLAIR": {"window": [0, 900]}},
    "nan": "minimum",
}


def test_every_field_is_read():
    made = DatasetDescription.from_json(BRATS, "test")
    assert made.classes == ("background", "necrosis", "oedema", "enhancing")
    assert made.labels == LabelValues(((0,), (1,), (2,), (4,)), ignored=(9,))
    assert made.structures == {
        "necrosis": (1,), "oedema": (2,), "enhancing": (3,), "core": (1, 3), "whole": (1, 2, 3),
    }  # fmt: skip
    assert (made.channels, made.endings) == (("T1", "FLAIR"), ("_t1", "_flair"))
    assert made.windows == (None, (0.0, 900.0))
    assert made.nan_is_minimum
    assert made.tolerances == {"necrosis": 2.0, "oedema": 2.0, "enhancing": 2.0, "core": 0.5, "whole": 2.0}


@pytest.mark.parametrize("values", [BRATS, DESCRIPTION, *(made.to_json() for made in DATASETS.values())])
def test_a_description_is_unchanged_by_json(values):
    made = DatasetDescription.from_json(values, "test")
    again = DatasetDescription.from_json(json.loads(json.dumps(made.to_json())), "test")
    assert again == made
    assert again.to_json() == made.to_json()


@pytest.mark.parametrize(
    ("labels", "classes", "values"),
    [
        ({"b": 7, "background": 0, "a": -3}, ("background", "a", "b"), ((0,), (-3,), (7,))),
        ({"kidney": [2, 1], "none": [0, 5]}, ("none", "kidney"), ((0, 5), (2, 1))),
        ({"Background": 3, "a": 1}, ("Background", "a"), ((3,), (1,))),
        ({"background": 0, "a": 1, "Ignore": 2}, ("background", "a"), ((0,), (1,))),
        ({"background": 1, "air": 0}, ("air", "background"), ((0,), (1,))),  # as in earlier versions
    ],
)
def test_the_background_comes_first_and_others_in_order_of_their_values(labels, classes, values):
    made = DatasetDescription.from_json(DESCRIPTION | {"labels": labels}, "test")
    assert (made.classes, made.labels.classes) == (classes, values)


def test_one_surface_tolerance_is_that_of_labels_and_regions():
    changes = {"regions": {"both": ["left", "right"]}, "surface_tolerance": 1.5}
    made = DatasetDescription.from_json(DESCRIPTION | changes, "test")
    assert made.tolerances == {"left": 1.5, "right": 1.5, "both": 1.5}
    assert made.to_json()["surface_tolerance"] == 1.5
    assert DatasetDescription.from_json(made.to_json(), "test") == made


PROBLEMS = {
    "two names for one value": (
        {"labels": {"background": 0, "a": 1, "b": [2, 1]}},
        'labels: found the value 1 of "a" and "b", expected one label for each value; unions of labels are regions',
    ),
    "a value twice": ({"labels": {"background": 0, "a": [1, 1]}}, 'labels: found the value 1 of "a" and "a"'),
    "an ignored value that is a class": (
        {"labels": {"background": 0, "a": 1, "ignore": 1}},
        'labels: found the value 1 of "a" and "ignore", expected an ignored value that no class has',
    ),
    "no background": ({"labels": {"a": 1, "b": 2}}, "labels: found no background, expected a label with the value 0"),
    "the background alone": ({"labels": {"background": 0, "ignore": 1}}, "labels: found 1 class, expected 2 to 255"),
    "too many classes": (
        {"labels": {str(value): value for value in range(256)}},
        "labels: found 256 classes, expected 2 to 255",
    ),
    "a value that is no whole number": (
        {"labels": {"background": 0, "a": 1.5}},
        'labels: found "a": 1.5, expected names',
    ),
    "a value that float32 cannot hold": (
        {"labels": {"background": 0, "a": 2**24}},
        'labels: found "a": 16777216, expec',
    ),
    "a class of no values": ({"labels": {"background": 0, "a": []}}, 'labels: found "a": [], expected names'),
    "a class with the name of a column": (
        {"labels": {"background": 0, "mean": 1}},
        'labels: found the name "mean", which tables need for themselves',
    ),
    "a region with the name of a column": ({"regions": {"case": ["left"]}}, 'regions: found the name "case", which'),
    "a region of an unknown label": (
        {"regions": {"both": ["left", "middle"]}},
        'regions: both: found "middle", expected some of left, right',
    ),
    "a region of ignored voxels": (
        {"labels": {"background": 0, "left": 1, "ignore": 2}, "regions": {"all": ["left", "ignore"]}},
        'regions: all: found "ignore", expected some of left',
    ),
    "a region with the name of a label": (
        {"regions": {"left": ["left", "right"]}},
        'regions: found "left" among the labels as well, expected another name',
    ),
    "a label twice in a region": ({"regions": {"both": ["left", "left"]}}, "regions: both: found ["),
    "a region of the background": ({"regions": {"all": ["background"]}}, 'regions: all: found "background", expected'),
    "a region of nothing": ({"regions": {"none": []}}, 'regions: found "none": [], expected names with a list'),
    "a surface tolerance of the background": (
        {"regions": {"both": ["left", "right"]}, "surface_tolerance": {"background": 1, "both": 1, "cyst": 2}},
        'surface_tolerance: found "background", "cyst", expected some of "left", "right", "both"',
    ),
    "a surface tolerance of zero": (
        {"surface_tolerance": {"left": 0}},
        'surface_tolerance: found {"left": 0}, expected a positive number, in mm, or names',
    ),
    "no surface tolerance": ({"surface_tolerance": {}}, "surface_tolerance: found {}, expected a positive number"),
    "a surface tolerance in words": ({"surface_tolerance": "2 mm"}, 'surface_tolerance: found "2 mm", expected a'),
    "channels of one name": ({"channels": ["a", "a"]}, 'channels: found ["a", "a"], expected different names'),
    "channels of one ending": ({"channels": {"a": "_0", "b": "_0"}}, "channels: found {"),
    "an ending with the format": ({"channels": {"a": "_t1.NII.gz"}}, 'channels: found {"a": "_t1.NII.gz"}, expected'),
    "no channels": ({"channels": []}, "channels: found [], expected a list of channel names"),
    "a rule for an unknown channel": (
        {"channels": ["a"], "intensity": {"b": {"zscore": True}}},
        'intensity: found rules for ["b"], expected one for each of the channels ["a"]',
    ),
    "no rule for a channel": (
        {"channels": ["a", "b"], "intensity": {"a": {"zscore": True}}},
        'intensity: found rules for ["a"], expected one for each of the channels ["a", "b"]',
    ),
    "a rule for channels with a problem of their own": (
        {"channels": ["x", "x"], "intensity": {"y": {"zscore": True}}},
        'channels: found ["x", "x"], expected different names and endings\n'
        'some.json: intensity: found rules for ["y"], expected one for each of the channels ["x", "x"]',
    ),
    "a window upside down": ({"intensity": {"window": [3, 2]}}, "intensity: found "),
    "two rules": ({"intensity": {"window": [0, 1], "zscore": True}}, "intensity: found {"),
    "no z-score": ({"intensity": {"zscore": False}}, "intensity: found "),
    "an unknown rule for NaN": ({"nan": "zero"}, 'nan: found "zero", expected "error" or "minimum"'),
    "a flat voxel": ({"spacing": [1, 0, 1]}, "spacing: found [1, 0, 1], expected three positive numbers, in mm"),
    "a voxel of truth": ({"spacing": [True, 1, 1]}, "spacing: found [true, 1, 1], expected three positive numbers"),
    "a name of two lines": ({"name": "a\nb"}, 'name: found "a\\nb", expected some text'),
    "an unknown field": ({"ignore": 3}, 'found the field "ignore", expected only name, [modality], labels, [regions]'),
}


@pytest.mark.parametrize(("changes", "part"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_is_one_line(changes, part):
    with pytest.raises(InputError) as caught:
        DatasetDescription.from_json(DESCRIPTION | changes, "some.json")
    assert str(caught.value).startswith(f"some.json: {part}")
    assert str(caught.value).count("\n") == part.count("\n")


def test_a_background_with_another_value_than_0_is_said():
    labels = {"air": 0, "background": 1, "bone": 2}
    (note,) = DatasetDescription.from_json(DESCRIPTION | {"labels": labels}, "some.json").notes
    assert note == 'labels: "air", with the value 0, is the background; "background" is a class'


@pytest.mark.parametrize(("values", "shown"), [(None, "null"), ([1], "[1]"), ("x" * 300, '"xxx')])
def test_what_is_no_object_is_refused(values, shown):
    with pytest.raises(InputError, match=re.escape(f"some.json: found {shown}")):
        DatasetDescription.from_json(values, "some.json")


def test_all_problems_are_named_together():
    changes = {"name": "", "labels": {"a": 1}, "spacing": None, "nan": 3, "window": [0, 1]}
    values = {name: value for name, value in (DESCRIPTION | changes).items() if value is not None}
    with pytest.raises(InputError) as caught:
        DatasetDescription.from_json(values, "some.json")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines[:4]] == ["name", "labels", "spacing", "nan"]
    planned = "tools.check_data --write_description chooses it"
    assert lines[2] == f"some.json: spacing: found none, expected three positive numbers, in mm; {planned}"
    assert lines[4].startswith('some.json: found the field "window"')


def test_a_problem_of_the_labels_hides_no_other():
    changes = {
        "labels": {"background": 0, "left": 1, "right": 1, "cyst": 1.5, "ignore": 1},
        "regions": {"both": ["left", "cyst"], "left": ["left", "middle"]},
        "intensity": {"zscore": False},
    }
    with pytest.raises(InputError) as caught:
        DatasetDescription.from_json(DESCRIPTION | changes, "some.json")
    labels, regions, intensity = str(caught.value).splitlines()
    assert labels.startswith('some.json: labels: found "cyst": 1.5, expected names')
    assert '; found the value 1 of "left" and "right" and "ignore", expected' in labels
    assert regions.startswith('some.json: regions: found "left" among the labels as well')
    assert regions.endswith('left: found "middle", expected some of left, right, cyst')
    assert intensity.startswith("some.json: intensity: found ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_encodings_of_windows_are_read(tmp_path, encoding):
    path = tmp_path / "dataset.json"
    path.write_bytes(json.dumps(DESCRIPTION | {"name": "Ödem"}, ensure_ascii=False).encode(encoding))
    assert DatasetDescription.read(path).name == "Ödem"


SCHEMA = REPOSITORY / "docs" / "dataset.schema.json"


def test_a_name_twice_in_an_object_is_refused(tmp_path):
    """JSON would keep the last value."""
    (tmp_path / "dataset.json").write_text('{"name": "x", "labels": {"background": 0, "tumour": 1, "tumour": 2}}')
    with pytest.raises(InputError, match='"tumour" twice in one object'):
        DatasetDescription.read(tmp_path / "dataset.json")


def test_the_committed_schema_is_that_of_the_command(tmp_path):
    dataset_schema.main(dataset_schema.parse_args(["--output", str(tmp_path / "schema.json")]))
    assert SCHEMA.read_text() == (tmp_path / "schema.json").read_text()


@pytest.mark.parametrize("values", [BRATS, DESCRIPTION, DATASETS["kits"].to_json()])
def test_the_schema_accepts_descriptions(values):
    jsonschema.validate(values | {"$schema": "docs/dataset.schema.json"}, json.loads(SCHEMA.read_text()))
    DatasetDescription.from_json(values | {"$schema": "docs/dataset.schema.json"}, "test")


@pytest.mark.parametrize(
    "changes", [{"spacing": [1, 1]}, {"labels": {"a": "1"}}, {"intensity": "zscore"}, {"spacings": 1}]
)
def test_the_schema_refuses_what_is_no_description(changes):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(DESCRIPTION | changes, json.loads(SCHEMA.read_text()))

"""Drafts of descriptions: what is given is kept, what is missing is found in headers and label maps."""

import json

import numpy as np
import pytest
from conftest import DESCRIPTION, write_nifti

from engine.data.datasets import DATASETS
from engine.data.drafts import GIVEN, make_draft
from engine.runtime.errors import InputError


def write_cases(root, labels, names=("{}",), affine=None, shape=(8, 8, 8), part="Tr"):
    """Write cases a, b, ... with these labels in the first voxels, and for each a file per name with noise."""
    for number, values in enumerate(labels):
        case = chr(ord("a") + number)
        label = np.zeros(shape[:3], np.float32)
        label.reshape(-1)[: len(values)] = values
        write_nifti(root / f"labels{part}" / f"{case}.nii.gz", label, affine)
        image = np.random.default_rng(number).normal(0, 1, shape).astype(np.float32)
        for name in names:
            write_nifti(root / f"images{part}" / f"{name.format(case)}.nii.gz", image, affine)


def draft(root, dataset=None):
    return make_draft(None if dataset is None else str(dataset), root, fix_affine=False, workers=2)


def problems(root, dataset=None):
    with pytest.raises(InputError) as error:
        draft(root, dataset)
    return str(error.value).splitlines()


def test_without_a_description_everything_is_found(tmp_path):
    root = tmp_path / "knees"
    write_cases(root, [(1, 4), (0, 4)], affine=np.diag([0.5, 0.6, 0.7, 1]))
    write_cases(root, [(7,)], part="Val")
    found = draft(root)
    assert found.description.to_json() == {
        "name": "knees",
        "labels": {"background": 0, "class_1": 1, "class_4": 4, "class_7": 7},
        "spacing": [0.5, 0.6, 0.7],
        "intensity": {"zscore": True},
        "channels": ["image"],
    }
    assert found.reasons == {
        "name": "the folder's name",
        "labels": "3 values in 3 label maps",
        "channels": "one file per case",
        "spacing": "that of 2 training cases",
    }
    assert found.warnings == {}


@pytest.mark.parametrize(
    ("names", "shape", "channels", "reason"),
    [
        (("{}_0000",), (8, 8, 8), ["image"], "files end with _0000"),
        (("{}_0000", "{}_0001"), (8, 8, 8), ["channel_0", "channel_1"], "files end with _0000, _0001"),
        (("{}",), (8, 8, 8, 3), ["channel_0", "channel_1", "channel_2"], "files of shape 8 x 8 x 8 x 3"),
    ],
)
def test_channels_are_counted_in_files_or_in_the_fourth_dimension(tmp_path, names, shape, channels, reason):
    write_cases(tmp_path, [(1,), (1,)], names, shape=shape)
    found = draft(tmp_path)
    assert list(found.description.channels) == channels
    assert found.reasons["channels"] == reason


@pytest.mark.parametrize("missing", [(), ("spacing",), ("intensity",), ("spacing", "intensity"), ("name", "labels")])
def test_fields_that_are_given_are_kept(tmp_path, missing):
    write_cases(tmp_path, [(1, 2)], affine=np.diag([2, 2, 2, 1]))
    given = DESCRIPTION | {"channels": ["T1"], "spacing": [3.0, 3.0, 3.0], "nan": "minimum"}
    given = {name: value for name, value in given.items() if name not in missing}
    (tmp_path / "part.json").write_text(json.dumps(given))
    found = draft(tmp_path, tmp_path / "part.json")
    values = found.description.to_json()
    assert {name: values[name] for name in given} == given
    assert {name for name, reason in found.reasons.items() if reason == GIVEN} == given.keys()
    assert list(found.description.spacing) == ([2.0] * 3 if "spacing" in missing else [3.0] * 3)
    assert ("intensity" in found.reasons) == ("intensity" in given)


@pytest.mark.parametrize(
    "foreign",
    [
        {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "knee"}, "numTraining": 1},
        {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "knee": 1}, "file_ending": ".nii.gz"},
    ],
    ids=["MSD", "nnU-Net"],
)
def test_descriptions_of_other_programs_lack_spacing_and_intensity(tmp_path, foreign):
    write_cases(tmp_path, [(1,)])
    (tmp_path / "dataset.json").write_text(json.dumps(foreign))
    found = draft(tmp_path, tmp_path / "dataset.json")
    assert (found.description.classes, found.description.channels) == (("background", "knee"), ("MRI",))
    assert found.reasons == dict.fromkeys(("name", "channels", "labels"), GIVEN) | {
        "spacing": "that of 1 training case"
    }
    (note,) = found.description.notes
    assert "taken from" in note


def test_a_dataset_by_name_is_complete(tmp_path):
    found = draft(tmp_path, "amos")
    assert found.description == DATASETS["amos"]
    assert set(found.reasons.values()) == {GIVEN}


def test_values_close_to_whole_numbers_count_as_these(tmp_path):
    write_cases(tmp_path, [(0.9999847, 2.0)])
    assert draft(tmp_path).description.labels.classes == ((0,), (1,), (2,))


def test_values_like_those_of_instances_are_doubted(tmp_path):
    write_cases(tmp_path, [range(1, 4), range(1, 13), range(1, 3)])
    (line,) = draft(tmp_path).warnings["instances"]
    assert line.startswith(f"{tmp_path / 'labelsTr'}: found 12 values, of which 9 are in less than half")


def test_many_classes_that_most_cases_have_are_not_doubted(tmp_path):
    write_cases(tmp_path, [range(1, 21), range(1, 20), range(1, 15)])
    assert draft(tmp_path).warnings == {}


def test_label_maps_without_whole_numbers_and_broken_ones_are_listed_together(tmp_path):
    write_cases(tmp_path, [(0.5, 1.25), (1.0,), (np.nan,)])
    (tmp_path / "labelsTr" / "b.nii.gz").write_bytes(b"no volume")
    first, second, third = problems(tmp_path)
    assert first == f"{tmp_path}/labelsTr/a.nii.gz: found label values 0.5, 1.25, expected whole numbers"
    assert second.startswith(f"{tmp_path}/labelsTr/b.nii.gz: cannot be read")
    assert third == f"{tmp_path}/labelsTr/c.nii.gz: found label values nan, expected whole numbers"


@pytest.mark.parametrize(
    ("labels", "part"),
    [([()], "labels: found 1 class, expected 2 to 255"), ([range(1, 301)], "labels: found 301 classes, expected 2 to")],
    ids=["none", "too many"],
)
def test_label_maps_without_usable_classes_are_refused(tmp_path, labels, part):
    write_cases(tmp_path, labels)
    (line,) = problems(tmp_path)
    assert line.startswith(f"{tmp_path}: {part}")


def test_folders_are_needed(tmp_path):
    (line,) = problems(tmp_path / "nowhere")
    assert line.startswith(f"{tmp_path / 'nowhere' / 'labelsTr'}: not found, expected a folder")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "cannot be read"),
        ("[1]", "found no JSON object"),
        ("{", "is not JSON"),
        ('{"spacing": [1, 1], "labels": {"background": 0, "a": 1}}', "spacing: found [1, 1], expected three"),
        ('{"space": [1, 1, 1], "labels": {"background": 0, "a": 1}}', 'found the field "space"'),
    ],
)
def test_a_description_with_mistakes_is_refused(tmp_path, content, part):
    write_cases(tmp_path, [(1,)])
    path = tmp_path / "given.json"
    if content is not None:
        path.write_text(content)
    (line,) = problems(tmp_path, path)
    assert str(path) in line
    assert part in line


def test_an_unknown_name_is_refused(tmp_path):
    (line,) = problems(tmp_path, "brain")
    assert line.startswith("--dataset: found 'brain', expected amos, ")

"""dataset.json of MSD and nnU-Net v2: what they say is taken, and what they do not say is asked for."""

import json

import pytest

from engine.data.datasets import DatasetDescription, find_description
from engine.runtime.errors import InputError

MSD = {
    "name": "Hippocampus",
    "description": "Left and right hippocampus segmentation",
    "tensorImageSize": "3D",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
    "numTraining": 1,
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
}
NNUNET = {
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "PZ": 1, "TZ": 2, "ignore": 3},
    "numTraining": 32,
    "file_ending": ".nii.gz",
}
SPACING = {"spacing": [1, 1, 1]}


def test_labels_and_channels_of_msd():
    made = DatasetDescription.from_json(MSD | SPACING, "data/dataset.json")
    assert (made.name, made.classes) == ("Hippocampus", ("background", "Anterior", "Posterior"))
    assert (made.channels, made.windows, made.modality) == (("MRI",), (None,), "")
    assert made.notes == [
        "data/dataset.json: taken from MSD: labels and channels (MRI); intensities are scaled by the z-score"
    ]


def test_labels_and_channels_of_nnunet(tmp_path):
    path = tmp_path / "Dataset005_Prostate" / "dataset.json"
    path.parent.mkdir()
    path.write_text(json.dumps(NNUNET | SPACING))
    made = find_description(str(path))
    assert (made.name, made.classes, made.channels) == (
        "Dataset005_Prostate",
        ("background", "PZ", "TZ"),
        ("T2", "ADC"),
    )
    assert made.labels.ignored == (3,)
    assert "taken from nnU-Net: labels and channels (T2, ADC)" in made.notes[0]


def test_misspelt_fields_are_named():
    (note,) = DatasetDescription.from_json(NNUNET | SPACING | {"region": {}, "NaN": "minimum"}, "dataset.json").notes
    assert note.endswith('; left out "region", "NaN", which neither nnU-Net nor Rep3D has')


def test_ten_channels_are_in_the_order_of_their_numbers():
    names = {str(number): f"c{number}" for number in reversed(range(11))}
    made = DatasetDescription.from_json(NNUNET | SPACING | {"channel_names": names}, "dataset.json")
    assert made.channels == tuple(f"c{number}" for number in range(11))


def test_names_of_several_values_are_merged():
    labels = {"0": "background", "1": "tumour", "2": "tumour"}
    made = DatasetDescription.from_json(MSD | SPACING | {"labels": labels}, "dataset.json")
    assert made.labels.classes == ((0,), (1, 2))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (MSD, "spacing: found none, which MSD does not write, expected three positive numbers, in mm"),
        (NNUNET, "spacing: found none, which nnU-Net does not write, expected three positive numbers, in mm"),
        (MSD | SPACING | {"modality": {"0": "CT"}}, "intensity: found none, which MSD does not write, expected {"),
        (NNUNET | SPACING | {"channel_names": {"0": "noNorm"}}, "intensity: found none, which nnU-Net does not"),
        (
            NNUNET
            | SPACING
            | {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]},
            'labels: found the value 2 of "whole" and "core", expected one label for each value; unions of labels are',
        ),
    ],
)
def test_what_is_missing_or_cannot_be_expressed_is_one_line(values, line):
    with pytest.raises(InputError) as caught:
        DatasetDescription.from_json(values, "dataset.json")
    assert str(caught.value).startswith(f"dataset.json: {line}")
    assert "\n" not in str(caught.value)


def test_fields_may_be_added_to_those_of_other_programs():
    own = {"channels": {"T2": "_t2", "ADC": "_adc"}, "regions": {"whole": ["PZ", "TZ"]}, "modality": {"0": "MRI"}}
    own |= {"surface_tolerance": {"PZ": 1}}
    made = DatasetDescription.from_json(NNUNET | SPACING | own, "dataset.json")
    assert (made.endings, made.regions, made.modality) == (("_t2", "_adc"), (("whole", (1, 2)),), "")
    assert made.tolerances == {"PZ": 1, "TZ": 2, "whole": 2}


def test_own_descriptions_say_nothing_of_other_programs():
    assert find_description("amos").notes == []

"""Dataset descriptions: the paper's five, those of JSON files, and round trips through JSON and checkpoints."""

import json
import re

import pytest
from conftest import DESCRIPTION

from engine.data.datasets import DATASETS, DatasetDescription, find_description
from engine.runtime.errors import InputError
from engine.weights.checkpoints import NetworkConfig, config_of, load_checkpoint, save_checkpoint

PAPER = {  # from the paper's table of data preparation: spacing in mm, intensity window, number of classes
    "amos": ((1.5, 1.5, 2.0), (-125, 275), 16),
    "amos_mri": ((1.0, 1.0, 1.0), (0, 1000), 14),
    "kits": ((1.5, 1.5, 2.0), (-125, 275), 4),
    "pancreas": ((1.5, 1.5, 2.0), (-125, 275), 3),
    "hepatic": ((1.5, 1.5, 2.0), (0, 230), 3),
}


def test_the_five_datasets_are_those_of_the_paper():
    found = {name: (made.spacing, *made.windows, len(made.classes)) for name, made in DATASETS.items()}
    assert found == PAPER
    assert all(made.classes[0] == "background" for made in DATASETS.values())
    assert all(len(set(made.classes)) == len(made.classes) for made in DATASETS.values())


@pytest.mark.parametrize("name", DATASETS)
def test_a_description_is_unchanged_by_json(name):
    assert DatasetDescription.from_json(DATASETS[name].to_json(), name) == DATASETS[name]


def test_label_values_order_the_classes():
    labels = {"right": 2, "background": 0, "left": 1}
    made = DatasetDescription.from_json(DESCRIPTION | {"labels": labels}, "test")
    assert made.classes == ("background", "left", "right")


def test_modality_is_optional():
    values = {name: value for name, value in DESCRIPTION.items() if name != "modality"}
    made = DatasetDescription.from_json(values, "test")
    assert made.modality == ""
    assert made.to_json() == values | {"channels": ["image"]}
    assert DatasetDescription.from_json(made.to_json(), "test") == made


@pytest.mark.parametrize("modality", ["", None, 3, "a\nb"])
def test_modality_is_text_if_it_is_given(modality):
    with pytest.raises(InputError, match=r"^test: modality: found .*, expected some text$"):
        DatasetDescription.from_json(DESCRIPTION | {"modality": modality}, "test")


def test_json_of_a_description_with_a_modality_is_unchanged():
    """Resumed runs and prediction folders compare it with the JSON that they have stored."""
    assert json.dumps(DATASETS["kits"].to_json()) == (
        '{"name": "kits", "modality": "CT", "labels": {"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}, '
        '"spacing": [1.5, 1.5, 2.0], "intensity": {"window": [-125.0, 275.0]}, "channels": ["image"]}'
    )


def test_description_without_modality_survives_a_checkpoint(tmp_path):
    values = {name: value for name, value in DESCRIPTION.items() if name != "modality"}
    made = DatasetDescription.from_json(values, "test")
    config = NetworkConfig.for_dataset(made, "UNet3D", (32, 32, 32), {})
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"config": config.to_plain(), "description": made.to_json()})
    content = load_checkpoint(path, "--trained_weights")
    assert content["description"] == made.to_json()
    assert config_of(content, path, "--trained_weights") == (config, made)


def test_an_unknown_field_is_answered_with_all_fields():
    fields = "name, [modality], labels, [regions], [surface_tolerance], [channels], spacing, intensity, [nan]"
    with pytest.raises(InputError, match=re.escape(f'test: found the field "spacings", expected only {fields}')):
        DatasetDescription.from_json(DESCRIPTION | {"spacings": 1}, "test")


def test_dataset_by_name_and_path(boxes):
    assert find_description("kits") == DATASETS["kits"]
    made = find_description(str(boxes / "boxes.json"))
    assert made.windows == (None,)

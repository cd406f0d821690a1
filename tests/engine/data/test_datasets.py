"""Descriptions: the paper's five, those of a file, and what they survive."""

import pytest
from conftest import DESCRIPTION

from engine.data.datasets import DATASETS, DatasetDescription, find_description

SEEDS = {  # the table of the paper's data preparation: spacing in mm, intensity window, classes
    "amos": ((1.5, 1.5, 2.0), (-125, 275), 16),
    "amos_mri": ((1.0, 1.0, 1.0), (0, 1000), 14),
    "kits": ((1.5, 1.5, 2.0), (-125, 275), 4),
    "pancreas": ((1.5, 1.5, 2.0), (-125, 275), 3),
    "hepatic": ((1.5, 1.5, 2.0), (0, 230), 3),
}


def test_the_five_datasets_are_those_of_the_paper():
    found = {name: (made.spacing, made.window, len(made.classes)) for name, made in DATASETS.items()}
    assert found == SEEDS
    assert all(made.classes[0] == "background" for made in DATASETS.values())
    assert all(len(set(made.classes)) == len(made.classes) for made in DATASETS.values())


@pytest.mark.parametrize("name", DATASETS)
def test_description_survives_json(name):
    assert DatasetDescription.from_json(DATASETS[name].to_json(), name) == DATASETS[name]


def test_label_values_order_the_classes():
    labels = {"right": 2, "background": 0, "left": 1}
    made = DatasetDescription.from_json(DESCRIPTION | {"labels": labels}, "test")
    assert made.classes == ("background", "left", "right")


def test_dataset_by_name_and_path(boxes):
    assert find_description("kits") is DATASETS["kits"]
    made = find_description(str(boxes / "boxes.json"))
    assert made.window is None

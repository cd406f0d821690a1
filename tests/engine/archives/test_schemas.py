"""The dataset.json of archives: labels that overlap become classes and regions."""

import json

import archive_layouts as layouts
import pytest

from engine.archives.schemas import Schema, complete_msd, split_regions
from engine.archives.sources import Source
from engine.archives.table import KINDS


@pytest.mark.parametrize(
    ("labels", "classes", "regions"),
    [
        ({"background": 0, "a": 1, "b": 2}, {"background": 0, "a": 1, "b": 2}, {}),
        ({"background": 0, "a": [1, 3], "b": 2}, {"background": 0, "a": [1, 3], "b": 2}, {}),
        (
            {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
            {"background": 0, "label 1": 1, "label 2": 2, "enhancing": 3},
            {"whole": ["label 1", "label 2", "enhancing"], "core": ["label 2", "enhancing"]},
        ),
        (
            {"background": 0, "kidney": [1, 2, 3], "mass": [2, 3]},
            {"background": 0, "label 1": 1, "mass": [2, 3]},
            {"kidney": ["label 1", "mass"]},
        ),
    ],
)
def test_regions_are_unions_of_classes(labels, classes, regions):
    assert split_regions(labels) == (classes, regions)
    named = {name: values if isinstance(values, list) else [values] for name, values in classes.items()}
    for name, values in labels.items():  # each label has the same voxels as before
        members = regions.get(name, [name])
        expected = values if isinstance(values, list) else [values]
        assert sorted(value for member in members for value in named[member]) == expected


def complete(files, name):
    values = json.loads(files[f"{name}/dataset.json"])
    return complete_msd(KINDS["msd"], Schema(f"{name}/dataset.json", Source(None, {}), values))


def test_a_task_of_the_decathlon_has_its_published_count():
    kind = complete(layouts.msd("pancreas", [1, 2]), "Task07_Pancreas")
    assert (kind.expected, kind.paper, kind.split) == ({"Tr": 281}, "pancreas", "splits/msd_pancreas.json")


def test_another_dataset_in_its_format_has_its_own_count_and_licence():
    files = layouts.msd("hippocampus", [1, 2])
    path = "Task04_Hippocampus/dataset.json"
    files[path] = files[path].replace(b"hippocampus_", b"scan_")
    kind = complete(files, "Task04_Hippocampus")
    assert (kind.expected, kind.title, kind.licence) == ({"Tr": 2}, "MSD's format, Hippocampus", "CC-BY-SA 4.0")

"""The table of kinds: counts as published, valid descriptions, and no contradiction between its entries."""

import re

import pytest

from engine.archives.description import PLACEHOLDERS, describe_dataset, label_values
from engine.archives.kinds import Kind
from engine.archives.table import BRATS_YEARS, KINDS, MSD_TASKS
from engine.archives.variants import Options, choose_variant
from engine.data.datasets import DATASETS, DEFAULT_TOLERANCE, DatasetDescription

COUNTS = {"amos": 200, "amos_mri": 40, "kits19": 210, "kits21": 300, "kits23": 489, "btcv": 30, "flare22": 50}
WITH_CLASSES = [name for name, kind in KINDS.items() if kind.classes or kind.paper]


def count(kind: Kind) -> int:
    return kind.expected.get("Tr") or len(kind.ids)


def test_counts_are_the_published_ones():
    assert {name: count(kind) for name, kind in KINDS.items() if count(kind)} == COUNTS
    assert (KINDS["amos"].expected["Val"], KINDS["amos_mri"].expected["Val"]) == (100, 20)
    assert [task.training for task in MSD_TASKS.values()] == [484, 20, 131, 260, 32, 63, 281, 303, 41, 126]


def test_the_smaller_kits21_has_the_first_210_cases():
    kind = choose_variant("kits21", Options(cases=210), [])
    assert kind.ids == {f"case_{number:05d}" for number in range(210)}


@pytest.mark.parametrize("labels", ["MAJ", "AND", "OR"])
def test_the_labels_of_kits21_are_those_that_are_asked_for(labels):
    kind = choose_variant("kits21", Options(labels=labels), [])
    (pattern,) = kind.labels
    found = [name for name in ("MAJ", "AND", "OR") if re.fullmatch(pattern, f"case_00000/aggregated_{name}_seg.nii.gz")]
    assert found == [labels]
    assert f"aggregated_{labels}_seg.nii.gz" in kind.layout


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_descriptions_are_valid(name):
    described = describe_dataset(KINDS[name])
    if not KINDS[name].paper:
        assert not described.keys() & PLACEHOLDERS.keys()
    assert label_values(described, name).classes[0] == (0,)


@pytest.mark.parametrize("year", BRATS_YEARS)
def test_every_year_of_brats_has_a_valid_description_and_what_four_means(year):
    kind = choose_variant("brats", Options(year=year), ["a/a_t1ce.nii.gz"] if year == "2021" else [])
    described = DatasetDescription.from_json(PLACEHOLDERS | describe_dataset(kind), year)
    assert len(described.channels) == len(described.endings) == 4
    assert [name for name, _ in described.regions] == ["whole tumor", "tumor core"]
    name_of = dict(zip(described.labels.classes, described.classes, strict=True))
    assert name_of.get((4,)) == {"2021": "enhancing tumor", "2023": None, "2024": "resection cavity"}[year]


def test_the_papers_datasets_are_described_by_its_own_entries():
    for name, entry in (("amos", "amos"), ("amos_mri", "amos_mri")):
        assert DatasetDescription.from_json(describe_dataset(KINDS[name]), name) == DATASETS[entry]
    papers = {kind.paper for kind in KINDS.values()} | {task.paper for task in MSD_TASKS.values()}
    assert papers - {""} == DATASETS.keys()


@pytest.mark.parametrize("name", ["kits21", "kits23"])
def test_kits_is_scored_with_the_tolerances_of_its_challenge(name):
    found = DatasetDescription.from_json(describe_dataset(KINDS[name]), name).tolerances
    expected = [1.03308, 1.13288, 1.14982]
    assert [found[structure] for structure in ("kidney and masses", "masses", "tumor")] == expected
    assert found["cyst"] == DEFAULT_TOLERANCE


def test_every_pattern_has_the_group_of_the_id():
    for kind in KINDS.values():
        for pattern in (*kind.images, *kind.labels, *kind.tests):
            assert "id" in re.compile(pattern).groupindex

"""The committed splits: counts, hashes, disjoint parts, and seeded divisions that come out the same again."""

from collections import Counter

import pytest
from conftest import REAL_DATA, REPOSITORY, real_data

from engine.data.division import divide
from engine.data.split_file import read_split_file

FILES = sorted((REPOSITORY / "splits").glob("*.json"))
COUNTS = {  # training, validation and test cases of each fold
    "amos_ct": [(200, 100, 0)],
    "amos_ct_3duxnet": [(160, 20, 20)],
    "amos_mri": [(40, 20, 0)],
    "hippocampus_160": [(120, 40, 0)],
    "kits19_210": [(168, 42, 0)] * 5,
    "kits21": [(240, 60, 0)] * 5,
    "msd_hepaticvessel": [(242, 61, 0)] * 3 + [(243, 60, 0)] * 2,
    "msd_pancreas": [(224, 57, 0)] + [(225, 56, 0)] * 4,
}
SEEDED = ("kits19_210", "kits21", "msd_hepaticvessel", "msd_pancreas")


def read(name):
    return read_split_file(REPOSITORY / "splits" / f"{name}.json")


def cases(split):
    return sorted({name for fold in split.folds for part in fold.values() for name in part} | set(split.test))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_counts_name_and_layout(path):
    split = read_split_file(path)  # which also compares the hash, and the parts with each other
    assert [(len(fold["training"]), len(fold["validation"]), len(split.test)) for fold in split.folds] == COUNTS[
        path.stem
    ]
    assert split.name == path.stem
    assert len(split.provenance) > 40
    assert path.read_text() == split.to_text()  # with its hash


def test_every_file_is_counted():
    assert {path.stem for path in FILES} == COUNTS.keys()


@pytest.mark.parametrize("name", SEEDED)
def test_a_seeded_split_comes_out_the_same_again(name):
    split = read(name)
    assert split.seed == 0
    folds, _ = divide(cases(split), split.seed, len(split.folds))
    assert [{part: list(ids) for part, ids in fold.items()} for fold in split.folds] == list(folds)
    assert set(Counter(name for fold in split.folds for name in fold["validation"]).values()) == {1}


def test_the_validation_part_of_3duxnet_comes_out_the_same_again():
    split = read("amos_ct_3duxnet")
    (fold,) = split.folds
    (again,), _ = divide([*fold["training"], *fold["validation"]], split.seed, validation=20 / 180)
    assert {part: list(ids) for part, ids in fold.items()} == again


def test_3duxnet_has_the_challenges_training_cases_with_the_largest_ids_for_the_test():
    challenge, split = read("amos_ct"), read("amos_ct_3duxnet")
    assert cases(split) == sorted(challenge.folds[0]["training"])
    assert sorted(split.test) == cases(split)[-20:]


def test_ids_are_those_of_the_prepared_layout():
    assert cases(read("kits21")) == [f"case_{number:05d}" for number in range(300)]
    assert cases(read("kits19_210")) == [f"case_{number:05d}" for number in range(210)]
    assert all(int(name.removeprefix("amos_")) < 500 for name in cases(read("amos_ct")))
    assert all(int(name.removeprefix("amos_")) > 500 for name in cases(read("amos_mri")))
    assert cases(read("msd_pancreas"))[:3] == ["pancreas_001", "pancreas_004", "pancreas_005"]
    assert cases(read("msd_hepaticvessel"))[:3] == ["hepaticvessel_001", "hepaticvessel_002", "hepaticvessel_004"]


@real_data("msd_hippocampus")
def test_the_hippocampus_split_is_that_of_the_folders():
    (fold,) = read("hippocampus_160").folds
    for part, folder in {"training": "imagesTr", "validation": "imagesVal"}.items():
        found = [path.name.removesuffix(".nii.gz") for path in (REAL_DATA / "msd_hippocampus" / folder).iterdir()]
        assert sorted(found) == list(fold[part])

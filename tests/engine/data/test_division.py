"""Division of cases at random: the same everywhere, every case in one part."""

import pytest

from engine.data.division import divide
from engine.runtime.errors import InputError

IDS = [f"case_{number:02d}" for number in range(23)]


def test_folds_hold_each_case_once_and_differ_by_one_at_most():
    folds, test = divide(IDS, 0, folds=5)
    assert test == ()
    assert sorted(name for fold in folds for name in fold["validation"]) == IDS
    assert sorted(len(fold["validation"]) for fold in folds) == [4, 4, 5, 5, 5]
    assert all(sorted([*fold["training"], *fold["validation"]]) == IDS for fold in folds)


def test_shares_for_validation_and_test():
    (fold,), test = divide(IDS, 0, validation=0.1, test=0.2)
    assert (len(fold["training"]), len(fold["validation"]), len(test)) == (16, 2, 5)
    assert sorted([*fold["training"], *fold["validation"], *test]) == IDS


def test_the_division_depends_on_seed_and_ids_alone():
    assert divide(IDS[::-1], 0) == divide(IDS, 0) != divide(IDS, 1)
    # From RandomState(0).permutation(5), which is [2 0 1 3 4] in every version of NumPy.
    folds, _ = divide(list("abcde"), 0, folds=5)
    assert [fold["validation"] for fold in folds] == [["c"], ["a"], ["b"], ["d"], ["e"]]


@pytest.mark.parametrize("sizes", [{"folds": 24}, {"validation": 0.99}, {"validation": 0.01}, {"test": 0.01}])
def test_too_few_cases_are_refused(sizes):
    with pytest.raises(InputError, match="found 23 cases, expected enough for a case in every part"):
        divide(IDS, 0, **sizes)

"""Division of cases at random, the same for a seed everywhere."""

from collections.abc import Sequence

import numpy as np

from engine.data.splits import TRAINING, VALIDATION, Fold, Ids
from engine.runtime.errors import InputError
from engine.runtime.wording import count_of


def divide(
    ids: Sequence[str], seed: int, folds: int = 5, validation: float | None = None, test: float = 0
) -> tuple[tuple[Fold, ...], Ids]:
    """Divide cases into parts at random.

    The sorted ids are permuted by NumPy's ``RandomState``, whose numbers are frozen: every version of NumPy gives the
    same for a seed (NEP 19), unlike ``default_rng``. The first ones are for the test. Of the others, with a share for
    validation, the next ones are the validation part of the only fold; otherwise the i-th is in the validation part of
    fold i modulo the number of folds, and in the training part of all other folds.

    Args:
        ids: ids of the cases, in any order.
        seed: seed of the permutation.
        folds: number of folds.
        validation: share of all cases for validation, in place of folds.
        test: share of all cases for the test.
    Returns: the folds and the ids for the test, each part sorted.
    Raises:
        InputError: there are too few cases.
    """
    names = sorted(ids)
    order = [names[place] for place in np.random.RandomState(seed).permutation(len(names))]
    held_out, others = order[: round(test * len(ids))], order[round(test * len(ids)) :]
    if validation is None:
        groups = [others[fold::folds] for fold in range(folds)]
    else:
        groups = [others[: round(validation * len(ids))]]
    made = [{TRAINING: sorted(set(others) - set(group)), VALIDATION: sorted(group)} for group in groups]
    sizes = [len(part) for fold in made for part in fold.values()] + ([len(held_out)] if test else [])
    if min(sizes) == 0:
        flags = f"{'--folds' if validation is None else '--validation'}, --test"
        raise InputError(f"{flags}: found {count_of(len(ids), 'case')}, expected enough for a case in every part")
    return tuple(made), tuple(sorted(held_out))

"""What pages conclude from the fine-tuning experiment, against its rows."""

import numpy as np
from conftest import REPOSITORY

from engine.runtime.files import read_csv

FOLDER = REPOSITORY / "experiments" / "finetuning"
ROWS = read_csv(FOLDER / "standard" / "results.csv")


def by_seed(arm, *classes):
    """Return the mean Dice of each seed, over all classes or some."""
    rows = [row for row in ROWS if row["arm"] == arm and row["class"] in (classes or ("head", "body", "tail"))]
    return np.array([np.mean([float(row["dice"]) for row in rows if row["seed"] == seed]) for seed in "012"])


def mean(arm):
    return f"{by_seed(arm).mean():.3f}"


def read(path):
    return " ".join(path.read_text().split())


DECAY, FROZEN = "100, layer decay", "100, encoder frozen for 25"


def test_the_means_on_the_pages():
    fast, slow = mean(f"shipped, {DECAY}"), mean("scratch, 400")
    page, guide = read(FOLDER / "README.md"), read(REPOSITORY / "docs" / "training.md")
    assert f"the mean Dice is {fast}, after 400 from scratch {slow}." in page
    assert f"the 100 iterations reach {mean('shipped, 100')} (" in page
    assert f"({mean('shipped, 50')} and {mean('scratch, 100')}). 25 are too few ({mean('shipped, 25')})" in page
    lowest = by_seed("shipped, 25", "tail").min()
    assert f"in one seed the tail has a Dice of {lowest:.3f} by then" in page
    quarter = by_seed("quarter rate, 100")
    assert f"100 iterations reach {quarter.mean():.3f}, and one seed only {quarter.min():.3f};" in page
    assert f"These 100 iterations reach a mean Dice of {fast}, 400 from scratch {slow} (" in guide
    assert f"at a quarter of it, the same reached {mean(f'quarter rate, {DECAY}')}." in guide


def test_the_differences_on_the_page():
    page = read(FOLDER / "README.md")
    start, scratch = by_seed("shipped, 100"), by_seed("scratch, 400")
    decay, frozen = by_seed(f"shipped, {DECAY}"), by_seed(f"shipped, {FROZEN}")
    assert f"The difference, {(decay - scratch).mean():+.3f} (" in page
    assert min(decay - scratch) > 0  # "the same sign in each seed"
    assert f"the first 25 iterations it is {(frozen - scratch).mean():+.3f}." in page
    assert f"({(start - scratch).mean():+.3f}, p = " in page
    assert f"layer decay adds {(decay - start).mean():.3f} in the mean, the" in page
    assert f"the frozen encoder {(frozen - start).mean():.3f}." in page
    assert f"four times the iterations add only {(scratch - by_seed('scratch, 100')).mean():.3f}." in page
    for arm in (DECAY, FROZEN):
        change = by_seed(f"quarter rate, {arm}") - by_seed("quarter rate, 100")
        assert min(change) < 0 < max(change)  # "differs in sign from seed to seed"

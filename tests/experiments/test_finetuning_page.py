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


def test_the_means_on_the_pages():
    fast, slow = mean("shipped, 100, layer decay"), mean("scratch, 400")
    page, guide = read(FOLDER / "README.md"), read(REPOSITORY / "docs" / "training.md")
    assert f"the mean Dice is {fast}; 400 iterations from scratch reach {slow}." in page
    assert f"the 100 iterations reach {mean('shipped, 100')}, and 50 are" in page
    assert f"({mean('shipped, 50')} and {mean('scratch, 100')}). 25 are too few ({mean('shipped, 25')})" in page
    assert f"These 100 iterations reach a mean Dice of {fast}, 400 from scratch {slow} (" in guide
    assert f"at a quarter of this rate, 100 iterations reached {mean('quarter rate, 100')}." in guide


def test_the_differences_on_the_page():
    page = read(FOLDER / "README.md")
    gain = by_seed("shipped, 100, layer decay") - by_seed("scratch, 400")
    assert f"The difference, {gain.mean():+.3f} (" in page
    assert min(gain) > 0  # "the same sign in each seed"
    full, quarter = by_seed("shipped, 100"), by_seed("quarter rate, 100")
    assert f"A quarter of it costs {(full - quarter).mean():.3f} and" in page
    assert f"lets the seeds differ by {np.ptp(quarter):.2f};" in page
    frozen, decay = ("shipped, 100, encoder frozen for 25", "shipped, 100, layer decay")
    assert f"layer decay adds {(by_seed(decay) - full).mean():.3f}, the encoder frozen for" in page
    assert f"the first 25 iterations {(by_seed(frozen) - full).mean():.3f} (" in page
    frozen, decay = ("quarter rate, 100, encoder frozen for 25", "quarter rate, 100, layer decay")
    assert f"the frozen encoder adds {(by_seed(frozen) - quarter).mean():.3f}, and layer" in page
    assert f"decay costs {(quarter - by_seed(decay)).mean():.3f}." in page
    more = by_seed("scratch, 400") - by_seed("scratch, 100")
    assert f"four times the iterations add only {more.mean():.3f}:" in page


def test_in_one_seed_25_iterations_are_not_enough_for_the_tail():
    lowest = by_seed("shipped, 25", "tail").min()
    assert f"in one seed the tail has a Dice of {lowest:.3f} by then" in read(FOLDER / "README.md")

"""What pages conclude from experiments, against the rows of their results."""

import re
from functools import cache

import numpy as np
from conftest import REPOSITORY

from engine.runtime.files import read_csv

EXPERIMENTS = REPOSITORY / "experiments"
SEEDS = "012"


@cache
def results(experiment):
    return read_csv(EXPERIMENTS / experiment / "standard" / "results.csv")


def by_seed(experiment, arm, *classes):
    """Return the mean Dice of each seed, over all classes or some; every class has the same cases."""
    rows = [row for row in results(experiment) if row["arm"] == arm and (not classes or row["class"] in classes)]
    return np.array([np.mean([float(row["dice"]) for row in rows if row["seed"] == seed]) for seed in SEEDS])


def read(path):
    return " ".join(path.read_text().split())


def page(experiment):
    return read(EXPERIMENTS / experiment / "README.md")


def compared_with_paper(lever):
    """Return the difference between a lever and the paper's recipe, and its p-value, from the levers' table."""
    (row,) = re.findall(rf"\| {lever} \| paper \| ([^|(]+) \([^|]+\) \| (\S+) ", page("levers"))
    return row


def test_what_the_best_recipe_gains():
    best, paper = by_seed("best_recipe", "best"), by_seed("best_recipe", "paper")
    text, guide = page("best_recipe"), read(REPOSITORY / "docs" / "training.md")
    gain = (best - paper).mean()
    assert f"{best.mean():.3f} with `best` and {paper.mean():.3f} with the paper's recipe: {gain:+.3f} (" in text
    assert f"between {min(best - paper):.3f} and {max(best - paper):.3f} in each seed." in text
    (difference, p), strong = compared_with_paper("best"), compared_with_paper("strong")
    assert f"was not found to differ ({difference}, p = {p})" in text
    assert f"nor was strong augmentation alone ({strong[0]}, p = {strong[1]})." in text
    assert f"the mean Dice is {gain:.3f} higher (" in guide
    assert f"in the time of 500 no gain was found ({difference.partition(' ')[0]}, p = {p}, " in guide


DECAY, FROZEN = "100, layer decay", "100, encoder frozen for 25"


def finetuned(arm, *classes):
    return by_seed("finetuning", arm, *classes)


def test_the_means_of_finetuning():
    def mean(arm):
        return f"{finetuned(arm).mean():.3f}"

    fast, slow = mean(f"shipped, {DECAY}"), mean("scratch, 400")
    text, guide = page("finetuning"), read(REPOSITORY / "docs" / "training.md")
    assert f"the mean Dice is {fast}, after 400 from scratch {slow}." in text
    assert f"the 100 iterations reach {mean('shipped, 100')} (" in text
    assert f"({mean('shipped, 50')} and {mean('scratch, 100')}). 25 are too few ({mean('shipped, 25')})" in text
    lowest = finetuned("shipped, 25", "tail").min()
    assert f"in one seed the tail has a Dice of {lowest:.3f} by then" in text
    quarter = finetuned("quarter rate, 100")
    assert f"100 iterations reach {quarter.mean():.3f}, and one seed only {quarter.min():.3f};" in text
    assert f"These 100 iterations reach a mean Dice of {fast}, 400 from scratch {slow} (" in guide
    assert f"at a quarter of it, the same reached {mean(f'quarter rate, {DECAY}')}." in guide


def test_the_differences_of_finetuning():
    text = page("finetuning")
    start, scratch = finetuned("shipped, 100"), finetuned("scratch, 400")
    decay, frozen = finetuned(f"shipped, {DECAY}"), finetuned(f"shipped, {FROZEN}")
    assert f"The difference, {(decay - scratch).mean():+.3f} (" in text
    assert min(decay - scratch) > 0  # "the same sign in each seed"
    assert f"the first 25 iterations it is {(frozen - scratch).mean():+.3f}." in text
    assert f"({(start - scratch).mean():+.3f}, p = " in text
    assert f"layer decay adds {(decay - start).mean():.3f} in the mean, the" in text
    assert f"the frozen encoder {(frozen - start).mean():.3f}." in text
    assert f"four times the iterations add only {(scratch - finetuned('scratch, 100')).mean():.3f}." in text
    for arm in (DECAY, FROZEN):
        change = finetuned(f"quarter rate, {arm}") - finetuned("quarter rate, 100")
        assert min(change) < 0 < max(change)  # "differs in sign from seed to seed"

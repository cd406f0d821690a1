"""Figures of an experiment, from its CSV tables."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engine.evaluation.metrics import mean_over_cases, mean_over_classes
from experiments.results import Row

Scores = dict[str, dict[int, NDArray[np.float64]]]  # arm -> seed -> (cases, classes)
COLOURS = color_sequences["tab10"] * 2
STAGES = 4
DISTANCES = (1, 4, 16)  # voxels, of the masks that are drawn over the training


def draw_scores(scores: Scores, arms: Sequence[str]) -> Figure:
    """Draw the mean Dice of every run as a dot, and the mean of every arm as a line."""
    figure = Figure(figsize=(8, 0.8 + 0.35 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        values = [mean_over_classes(mean_over_cases(list(table))) for table in scores.get(arm, {}).values()]
        axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6)
        if values:
            axes.plot(np.mean(values), place, "|", color="black", markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(arms)), arms)
    axes.set(xlabel="mean Dice: each seed (dots), all seeds (lines)", ylim=(len(arms) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    return figure


def draw_masks(rows: Sequence[Row], arms: Sequence[str]) -> Figure:
    """Draw the masks over the training: correction, smallest value, values at three distances; and the final profiles.

    Every point is a median over blocks and seeds.
    """
    figure = Figure(figsize=(16, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (correction, smallest, profile), over_training = figure.subplots(2, 3)
    last = max(int(row["iteration"]) for row in rows)
    final = [row for row in rows if int(row["iteration"]) == last]
    for arm, colour in zip(arms, COLOURS, strict=False):
        own = [row for row in rows if row["arm"] == arm]
        _plot_medians(correction, own, "correction", "iteration", "o-", color=colour)
        _plot_medians(smallest, own, "smallest", "iteration", "o-", color=colour)
        own_final = [row for row in final if row["arm"] == arm]
        _plot_medians(profile, own_final, "M at distance", "distance", "-", color=colour, label=arm)
        for axes, distance in zip(over_training, DISTANCES, strict=True):
            at = [row for row in own if row["quantity"] == f"M at distance {distance}"]
            _plot_medians(axes, at, "M at distance", "iteration", "o-", color=colour)
    _plot_medians(profile, final, "P at distance", "distance", "k--", label="prior P")
    for axes, distance in zip(over_training, DISTANCES, strict=True):
        axes.set(xlabel="iteration", ylabel="M", title=f"mask at {distance} voxels from the centre")
    correction.set(xlabel="iteration", ylabel="mean of |M - P| / P", title="size of the correction", yscale="log")
    smallest.axhline(0, color="black", linewidth=0.8)
    smallest.set(xlabel="iteration", ylabel="M", title="smallest value of the mask")
    profile.set(xlabel="distance from the centre, voxels", ylabel="M", title="mask after training")
    figure.legend(loc="outside right upper")
    return figure


def draw_taps(rows: Sequence[Row], arms: Sequence[str]) -> Figure:
    """Draw gradient, change and overlap of the taps over their distance from the centre, a column per stage.

    Every point is a median over the blocks of a stage and the seeds. Gradients are relative to that of the centre.
    """
    figure = Figure(figsize=(16, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, STAGES, sharex=True, sharey="row")
    for stage in range(STAGES):
        own = [row for row in rows if f".stages.{stage}." in row["block"]]
        gradient, change = panels[:, stage]
        for arm, colour in zip(arms, COLOURS, strict=False):
            of_arm = [row for row in own if row["arm"] == arm]
            label = arm if stage == 0 else None
            _plot_medians(gradient, of_arm, "gradient at distance", "distance", "-", relative=True, color=colour)
            _plot_medians(change, of_arm, "change at distance", "distance", "-", color=colour, label=label)
        overlap = "share of the grid that the tap meets" if stage == 0 else None
        _plot_medians(gradient, own, "overlap at distance", "distance", "k--", label=overlap)
        gradient.set(title=f"stage {stage + 1}", yscale="log")
        change.set(xlabel="distance from the centre, voxels", yscale="log")
    panels[0, 0].set_ylabel("root mean square of dL/dW_eff, centre = 1")
    panels[1, 0].set_ylabel("|change of W_eff| / |W_eff at the start|")
    figure.legend(loc="outside right upper")
    return figure


def _plot_medians(
    axes: Axes, rows: Sequence[Row], quantity: str, over: str, style: str, relative: bool = False, **options: Any
) -> None:
    """Plot the medians of a quantity over the iterations, or over the distances that end its name.

    With ``relative``, all medians are divided by the first.
    """
    groups: dict[int, list[float]] = {}
    for row in rows:
        if row["quantity"].startswith(quantity):
            place = row["iteration"] if over == "iteration" else row["quantity"].rpartition(" ")[2]
            groups.setdefault(int(place), []).append(float(row["value"]))
    places = sorted(groups)
    if medians := np.array([np.median(groups[place]) for place in places]).tolist():
        axes.plot(places, np.divide(medians, medians[0] if relative else 1), style, **options)


MEASURED: dict[str, Callable[[Sequence[Row], Sequence[str]], Figure]] = {"masks": draw_masks, "taps": draw_taps}

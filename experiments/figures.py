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


def draw_loss(rows: Sequence[Row], arms: Sequence[str]) -> Figure:
    """Draw the training loss, the median over the seeds."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for arm, colour in zip(arms, COLOURS, strict=False):
        _plot(axes, select(rows, arm=arm), "iteration", "-", color=colour, label=arm)
    axes.set(xlabel="iteration", ylabel="training loss, mean of 25", yscale="log")
    figure.legend(loc="outside right upper")
    return figure


def draw_validation(rows: Sequence[Row], arms: Sequence[str]) -> Figure:
    """Draw the mean Dice of the validations over the time that training took until then, medians over the seeds."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for arm, colour in zip(arms, COLOURS, strict=False):
        own = select(rows, arm=arm)
        minutes, dice = (_reduce(select(own, quantity=name), "iteration") for name in ("minutes", "mean Dice"))
        axes.plot(list(minutes.values()), list(dice.values()), "o-", markersize=3, color=colour, label=arm)
    axes.set(xlabel="training time, minutes", ylabel="mean Dice of the validation cases")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    return figure


def draw_masks(rows: Sequence[Row], arms: Sequence[str]) -> Figure:
    """Draw the masks over the training: correction, smallest value, values at three distances; and the final profiles.

    Every point is a median over blocks and seeds, of the smallest value the minimum.
    """
    figure = Figure(figsize=(16, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (correction, smallest, profile), over_training = figure.subplots(2, 3)
    last = max((row["iteration"] for row in rows), key=int)
    for arm, colour in zip(arms, COLOURS, strict=False):
        own = select(rows, arm=arm)
        _plot(correction, select(own, quantity="correction"), "iteration", "o-", color=colour)
        _plot(smallest, select(own, quantity="smallest"), "iteration", "o-", reduce=np.min, color=colour)
        masks = select(own, quantity="mask")
        _plot(profile, select(masks, iteration=last), "distance", "-", color=colour, label=arm)
        for axes, distance in zip(over_training, DISTANCES, strict=True):
            _plot(axes, select(masks, distance=distance), "iteration", "o-", color=colour)
    _plot(profile, select(rows, quantity="prior"), "distance", "k--", label="prior P")
    correction.set(xlabel="iteration", ylabel="mean of |M - P| / P", title="size of the correction", yscale="log")
    smallest.axhline(0, color="black", linewidth=0.8)
    smallest.set(xlabel="iteration", ylabel="M", title="smallest value of the mask")
    profile.set(xlabel="distance from the centre, voxels", ylabel="M", title="mask after training")
    for axes, distance in zip(over_training, DISTANCES, strict=True):
        axes.set(xlabel="iteration", ylabel="M", title=f"mask at a distance of {distance}")
    figure.legend(loc="outside right upper")
    return figure


def draw_taps(rows: Sequence[Row], arms: Sequence[str]) -> Figure:
    """Draw the taps over their distance from the centre, a column per stage.

    The rows are gradient, change, and what remained to be learned after about a fifth of the training. Every point is a
    median over the blocks of a stage and the seeds. Gradients are relative to that of the centre.
    """
    figure = Figure(figsize=(16, 10), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, STAGES, sharex=True, sharey="row")
    early = early_snapshot(rows)
    for stage in range(STAGES):
        own = [row for row in rows if f".stages.{stage}." in row["block"]]
        gradient, change, remaining = panels[:, stage]
        for arm, colour in zip(arms, COLOURS, strict=False):
            taps = select(own, arm=arm)
            label = arm if stage == 0 else None
            _plot(gradient, select(taps, quantity="gradient"), "distance", "-", relative=True, color=colour)
            _plot(change, select(taps, quantity="change"), "distance", "-", color=colour, label=label)
            rest = select(taps, quantity="remaining", iteration=early)
            _plot(remaining, rest, "distance", "-", color=colour)
        shares = "share of the grid that the tap meets" if stage == 0 else None
        _plot(gradient, select(own, quantity="overlap"), "distance", "k--", label=shares)
        gradient.set(title=f"stage {stage + 1}", yscale="log")
        change.set(yscale="log")
        remaining.set(xlabel="distance from the centre, voxels")
    panels[0, 0].set_ylabel("root mean square of dL/dW_eff, centre = 1")
    panels[1, 0].set_ylabel("|change of W_eff| / |W_eff at the start|")
    panels[2, 0].set_ylabel(f"share of the way left at iteration {early}")
    figure.legend(loc="outside right upper")
    return figure


def early_snapshot(rows: Sequence[Row]) -> int:
    """Return the iteration of the snapshot of taps that is closest to a fifth of the training."""
    snapshots = {int(row["iteration"]) for row in select(rows, quantity="remaining")}
    return min(snapshots, key=lambda iteration: abs(iteration - max(snapshots) / 5))


def select(rows: Sequence[Row], **values: object) -> list[Row]:
    """Return the rows whose columns have these values."""
    return [row for row in rows if all(row[column] == str(value) for column, value in values.items())]


def _plot(
    axes: Axes,
    rows: Sequence[Row],
    over: str,
    style: str,
    relative: bool = False,
    reduce: Callable[[list[float]], np.floating] = np.median,
    **options: Any,
) -> None:
    """Plot the median of rows, or another reduction, over a column of numbers; ``relative`` divides by the first."""
    points = _reduce(rows, over, reduce)
    if values := list(points.values()):
        axes.plot(list(points), np.divide(values, values[0] if relative else 1), style, **options)


def _reduce(
    rows: Sequence[Row], over: str, reduce: Callable[[list[float]], np.floating] = np.median
) -> dict[int, float]:
    """Reduce the values of rows to one for each number in a column, in the order of these numbers."""
    groups: dict[int, list[float]] = {}
    for row in rows:
        groups.setdefault(int(row[over]), []).append(float(row["value"]))
    return {place: float(reduce(groups[place])) for place in sorted(groups)}


MEASURED: dict[str, Callable[[Sequence[Row], Sequence[str]], Figure]] = {
    "loss": draw_loss,
    "validation": draw_validation,
    "masks": draw_masks,
    "taps": draw_taps,
}

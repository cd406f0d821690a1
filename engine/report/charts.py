"""Charts of a report; each returns a figure to be drawn within ``drawing(CHARTS)``."""

import numpy as np
from matplotlib.figure import Figure

from engine.report.curves import DRAWN, Curve, draw_dice, draw_loss, thin
from engine.report.figures import GREY, LINE, make_chart
from engine.report.scores import DiceScores

WAIT, COMPUTE = "train/data_wait_s", "train/compute_s"
WORST_WAITS = 99.5  # percentile up to which the histogram of waiting times reaches


def chart_loss(loss: Curve) -> Figure:
    """Draw the loss over the iterations."""
    figure = make_chart()
    draw_loss(figure.subplots(), loss)
    return figure


def chart_rate(rate: Curve) -> Figure:
    """Draw the learning rate over the iterations."""
    figure = make_chart()
    axes = figure.subplots()
    axes.plot(*thin(rate), color=LINE)
    axes.set(xlabel="iteration", ylabel="learning rate")
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))
    axes.set_ylim(bottom=0)
    return figure


def chart_dice_curves(scalars: dict[str, Curve]) -> Figure:
    """Draw the Dice of each class over the iterations, with a legend beside it."""
    names = sum(name.startswith("dice/") for name in scalars)
    figure = make_chart(height=max(3, 0.2 * names + 0.4))
    draw_dice(figure.subplots(), scalars)
    figure.legend(loc="outside right upper", fontsize=8, handlelength=1)
    return figure


def chart_dice(scores: DiceScores) -> Figure:
    """Draw the Dice of each structure: a point per case, and a box of the quartiles with the median."""
    figure = make_chart(5, 0.34 * len(scores.structures) + 0.8)
    axes = figure.subplots()
    shift = np.random.default_rng(0).uniform(-0.22, 0.22, len(scores.cases))
    columns = [column[~np.isnan(column)] for column in scores.dice.T]
    axes.boxplot(columns, orientation="horizontal", widths=0.62, showfliers=False)
    for place, column in enumerate(scores.dice.T, start=1):
        axes.plot(column, place + shift, "o", markersize=2.5, alpha=0.6, color=LINE, markeredgewidth=0)
    axes.set_yticks(range(1, len(columns) + 1), scores.structures)
    axes.invert_yaxis()
    axes.set(xlabel="Dice", xlim=(min(0.5, np.nanmin(scores.dice, initial=0.5)) - 0.02, 1.02))
    axes.grid(visible=False, axis="y")
    return figure


def chart_wait(wait: Curve, compute: Curve) -> Figure:
    """Draw the share of the time that a step waits for its data, averaged over parts of the run."""
    figure = make_chart()
    axes = figure.subplots()
    parts = min(len(wait.steps), DRAWN // 10)
    steps, waits, computes = (np.array_split(column, parts) for column in (wait.steps, wait.values, compute.values))
    shares = [100 * one.sum() / max(one.sum() + two.sum(), 1e-12) for one, two in zip(waits, computes, strict=True)]
    axes.plot([part.mean() for part in steps], shares, color=LINE)
    axes.set(xlabel="iteration", ylabel="waiting for data, % of the time", ylim=(0, max(5, 1.05 * max(shares))))
    return figure


def chart_steps(wait: Curve, compute: Curve) -> Figure:
    """Draw a histogram of the seconds that a step waits for its data and computes."""
    figure = make_chart()
    axes = figure.subplots()
    most = np.percentile(np.concatenate([wait.values, compute.values]), WORST_WAITS)
    bins = np.linspace(0, max(most, 1e-3), 41)
    for curve, label, colour in ((compute, "computing", GREY), (wait, "waiting for data", LINE)):
        axes.hist(curve.values, bins.tolist(), label=label, color=colour, alpha=0.75)
    axes.set(xlabel="seconds", ylabel="steps")
    axes.legend()
    return figure

"""Curves of a training run: read from TensorBoard's event files, and drawn."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMOOTHED = 20  # iterations in the running mean of the loss, or more in a long run
MARKED = 30  # points of a curve whose points are marked
DRAWN = 500  # points of a curve; a longer one is averaged over equal parts


class Curve(NamedTuple):
    """Numbers that were logged under one name.

    Args:
        steps: iterations, (n,).
        values: (n,).
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def finite(self) -> "Curve":
        """Return the part without NaN and infinity."""
        known = np.isfinite(self.values)
        return Curve(self.steps[known], self.values[known])


class Logs(NamedTuple):
    """Content of the TensorBoard folder of a run.

    Args:
        scalars: curves by name.
        pictures: the latest picture of each name, as PNG files.
        times: wall-clock times of the first and the last number of a training step, seconds since 1970.
    """

    scalars: dict[str, Curve]
    pictures: dict[str, bytes]
    times: tuple[float, float] | None


def read_logs(folder: Path) -> Logs:
    """Read the event files of a run; everything is empty for a run without a step, or without such a folder."""
    if not folder.is_dir():
        return Logs({}, {}, None)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1}).Reload()
    tags, scalars, times = events.Tags(), {}, []
    for name in tags["scalars"]:
        entries = events.Scalars(name)
        scalars[name] = Curve(np.array([one.step for one in entries]), np.array([one.value for one in entries]))
        times += [entries[0].wall_time, entries[-1].wall_time] if name.startswith("train/") else []
    pictures = {name: events.Images(name)[-1].encoded_image_string for name in tags["images"]}
    return Logs(scalars, pictures, (min(times), max(times)) if times else None)


def pair(first: Curve, second: Curve) -> tuple[Curve, Curve]:
    """Return the points of two curves at the steps that both have; a run in progress or a kill may leave one longer."""
    steps, *places = np.intersect1d(first.steps, second.steps, return_indices=True)
    one, two = (Curve(steps, curve.values[place]) for curve, place in zip((first, second), places, strict=True))
    return one, two


def thin(curve: Curve) -> Curve:
    """Average a curve over ``DRAWN`` equal parts, if it has more points."""
    if len(curve.steps) <= DRAWN:
        return curve
    steps, values = (np.array_split(column, DRAWN) for column in curve)
    return Curve(*(np.array([part.mean() for part in parts]) for parts in (steps, values)))


def running_mean(curve: Curve) -> tuple[Curve, int]:
    """Average each point of a curve and those before it; return the means, and the number of points in each."""
    if not len(curve.steps):
        return curve, 0
    width = min(max(SMOOTHED, len(curve.steps) // 100), len(curve.steps))
    means = np.convolve(curve.values, np.full(width, 1 / width), mode="valid")
    return Curve(curve.steps[width - 1 :], means), width


def draw_loss(axes: Axes, loss: Curve) -> None:
    """Draw the running mean of the training loss; steps whose loss was not finite are left out."""
    smooth, width = running_mean(loss.finite())
    axes.plot(*thin(smooth))
    axes.set(xlabel="iteration", ylabel=f"DiceCE loss, mean of {width}")


def draw_dice(axes: Axes, scalars: dict[str, Curve]) -> None:
    """Draw the Dice of each class, and their mean, on the validation cases; with labels for a legend."""
    axes.set_prop_cycle(color=color_sequences["tab20"])
    for name, curve in scalars.items():
        if name.startswith("dice/"):
            line = "o-" if len(curve.steps) <= MARKED else "-"
            axes.plot(*curve, line, markersize=3, label=name.removeprefix("dice/"))
    axes.set(xlabel="iteration", ylabel="Dice", ylim=(0, 1))

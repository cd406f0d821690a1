"""Plot a training run: loss and Dice over the iterations, and the learned masks of its network.

    python -m tools.plot_run --run runs/amos --output pictures

Writes curve.png and, if the network has masks, masks.png.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from matplotlib import color_sequences
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.evaluation.masks import compute_masks
from engine.evaluation.pictures import mask_slices, save_png
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import BEST, make_output_folder
from engine.weights.load_network import load_trained

SMOOTHED = 20  # iterations in the running mean of the plotted loss


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("plot_run", description=__doc__.splitlines()[0])
    parser.add_argument("--run", metavar="DIR", required=True, help="output folder of main_train.py")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the pictures")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Plot the curves, and the masks if there are any."""
    output, logs = Path(args.output), Path(args.run) / "tensorboard"
    if not os.path.isdir(logs):
        raise InputError(f"--run: found no {logs}, expected the output folder of main_train.py")
    make_output_folder(output)
    save_png(draw_curve(EventAccumulator(str(logs), size_guidance={"scalars": 0}).Reload()), output / "curve.png")

    network = load_trained(Path(args.run) / BEST, "--run").network
    if masks := compute_masks(network):
        save_png(mask_slices(masks), output / "masks.png")


def draw_curve(logs: EventAccumulator) -> Figure:
    """Plot the running mean of the training loss, and the Dice of each class on the validation cases."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, dice_axes = figure.subplots(1, 2)
    if "train/loss" not in logs.Tags()["scalars"]:
        raise InputError("--run: found no losses in the logs, expected at least one iteration")
    losses = logs.Scalars("train/loss")
    width = min(SMOOTHED, len(losses))
    smooth = np.convolve([event.value for event in losses], np.full(width, 1 / width), mode="valid")
    loss_axes.plot([event.step for event in losses][width - 1 :], smooth)
    loss_axes.set(xlabel="iteration", ylabel=f"DiceCE loss, mean of {width}", title="training")
    dice_axes.set_prop_cycle(color=color_sequences["tab20"])
    for tag in logs.Tags()["scalars"]:
        if tag.startswith("dice/"):
            events = logs.Scalars(tag)
            label = tag.removeprefix("dice/")
            dice_axes.plot([event.step for event in events], [event.value for event in events], "o-", label=label)
    dice_axes.set(xlabel="iteration", ylabel="Dice", ylim=(0, 1), title="validation")
    figure.legend(loc="outside right upper")  # inside the axes, sixteen names would cover the curves
    return figure


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

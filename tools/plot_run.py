"""Plot a training run: loss and Dice over the iterations, and the learned masks of its network.

    python -m tools.plot_run --run runs/amos --output pictures

Writes curve.png and, if the network has masks, masks.png.
"""

import argparse
import os
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engine.evaluation.masks import compute_masks
from engine.evaluation.pictures import mask_slices, save_png
from engine.report.curves import Curve, draw_dice, draw_loss, read_logs
from engine.report.figures import PLAIN_TEXT, drawing
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import BEST, make_output_folder
from engine.weights.load_network import load_trained


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
    with drawing(PLAIN_TEXT):
        save_png(draw_curves(read_logs(logs).scalars), output / "curve.png")

    network = load_trained(Path(args.run) / BEST, "--run").network
    if masks := compute_masks(network):
        save_png(mask_slices(masks), output / "masks.png")


def draw_curves(scalars: dict[str, Curve]) -> Figure:
    """Plot the running mean of the training loss, and the Dice of each class on the validation cases."""
    if "train/loss" not in scalars:
        raise InputError("--run: found no losses in the logs, expected at least one iteration")
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, dice_axes = figure.subplots(1, 2)
    loss_axes.set_title("training")
    dice_axes.set_title("validation")
    draw_loss(loss_axes, scalars["train/loss"])
    draw_dice(dice_axes, scalars)
    figure.legend(loc="outside right upper")  # inside the axes, sixteen names would cover the curves
    return figure


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

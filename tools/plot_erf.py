"""Plot the effective receptive field of trained networks, by the protocol of RepLKNet in 3D.

    python -m tools.plot_erf --weights runs/a/best_metric_model.pth runs/b/best_metric_model.pth \\
        --root /data/amos --output pictures

The field is that of the central voxel of the encoder's deepest stage, averaged over the central crops of the validation
images: one crop of the checkpoint's roi_size per image. engine/evaluation/receptive_field.py has the definitions.

Writes erf.png and erf.csv, and prints which share of the crop's volume is in the smallest cube around that voxel that
holds 20, 30, 50 and 99 % of the contributions, with the side of this cube in voxels.
"""

import argparse
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from monai.transforms import CenterSpatialCropd
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from engine.data.cases import pair_cases, validation_folder
from engine.data.crops import PadToSized
from engine.data.datasets import DatasetDescription
from engine.data.load_volume import Pipeline
from engine.evaluation.pictures import PLANES, save_png
from engine.evaluation.receptive_field import Box, Features, ReceptiveField, measure_field, smallest_box
from engine.prediction.predict_cases import CasesToPredict, Failure
from engine.runtime.arguments import number
from engine.runtime.devices import choose_device, to_device
from engine.runtime.errors import InputError, OneLineParser, raise_problems, run
from engine.runtime.files import make_output_folder, write_csv
from engine.weights.load_network import load_trained, name_checkpoints
from load_datasets_transforms import test_pipeline
from networks.base import SegmentationNetwork
from networks.large_kernel_unet import LargeKernelUNet

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)  # shares of the contributions
Boxes = dict[float, Box]  # smallest box for each of them


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("plot_erf", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", nargs="+", metavar="FILE", required=True, help="checkpoints of main_train.py")
    parser.add_argument("--root", metavar="DIR", required=True, help="dataset folder, has imagesVal")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the picture and the table")
    parser.add_argument("--images", type=number(int, 1), default=50, metavar="N", help="average over at most N images")
    observed = "observed voxel: in the encoder's deepest stage or in the logits"
    parser.add_argument("--of", default="encoder", choices=("encoder", "logits"), help=observed)
    parser.add_argument("--gpu", default="0", metavar="DEVICE", help="number of a CUDA device, or cpu")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure the field of each checkpoint, and write picture and tables."""
    output, device = Path(args.output), choose_device(args.gpu)
    names = name_checkpoints(args.weights, "--weights")
    make_output_folder(output)
    trained = {path: load_trained(Path(path), "--weights", deploy=True) for path in args.weights}
    features = {path: choose_features(found.network, args.of, path) for path, found in trained.items()}
    crops = cache(partial(load_crops, Path(args.root), args.images))  # most checkpoints share them
    fields, boxes = {}, {}
    for path, (network, config, description, _) in trained.items():
        to_device(network.eval().requires_grad_(False), device)
        images = tqdm([crop.to(device) for crop in crops(description, config.roi_size)], path, leave=False)
        fields[path] = field = measure_field(features[path][0], images, features[path][1])
        try:
            boxes[path] = {share: smallest_box(field.contributions, field.centre, share) for share in THRESHOLDS}
        except ValueError as error:  # the features are not finite, or all negative
            raise InputError(f"--weights: {path}: {error}") from error
    save_png(draw_fields(fields, boxes, names), output / "erf.png")
    write_table(fields, boxes, output / "erf.csv")
    print(format_table(fields, boxes))


def choose_features(network: SegmentationNetwork, of: str, path: str) -> tuple[Features, tuple[int, ...]]:
    """Return the function from the input to the features to observe, and the strides of their voxels."""
    if of == "logits":
        return network, (1, 1, 1)
    if not isinstance(network, LargeKernelUNet):
        raise InputError(
            f"--of: found encoder with {type(network).__name__} in {path}, expected logits for this network"
        )
    return lambda images: network.encoder(images)[-1], network.input_sizes.divisors


def load_crops(root: Path, count: int, description: DatasetDescription, roi_size: tuple[int, ...]) -> list[Tensor]:
    """Load the central crops (1, channels, *roi_size) of up to ``count`` validation images, padded as in training."""
    cases = pair_cases(validation_folder(root, "images"), None, len(description.channels), description.endings)[:count]
    crop = [PadToSized(["image"], roi_size), CenterSpatialCropd("image", roi_size)]
    transforms = Pipeline([*test_pipeline(description).transforms, *crop])
    samples = CasesToPredict(cases, transforms, description)
    crops, problems = [], []
    for case in tqdm(range(len(samples)), "loading", leave=False):
        sample = samples[case]
        if isinstance(sample, Failure):
            problems.append(sample.reason)
        else:
            crops.append(sample["image"].as_subclass(Tensor)[None].clone())  # a view would keep the whole volume
    raise_problems(problems)
    return crops


def draw_fields(fields: dict[str, ReceptiveField], boxes: dict[str, Boxes], names: dict[str, str]) -> Figure:
    """Draw three planes through the observed voxel per checkpoint, log10(x + 1) scaled to 1, with outlined boxes."""
    figure = Figure(figsize=(11, 3.6 * len(fields) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(fields), 3, squeeze=False)
    for views, (path, field) in zip(rows, fields.items(), strict=True):
        scores = np.log10(field.contributions + 1)
        scores /= scores.max()
        for axis, view in enumerate(views):
            shown = view.imshow(scores.take(field.centre[axis], axis).T, "magma", vmin=0, vmax=1, origin="lower")
            _outline(view, boxes[path], *(field.centre[other] for other in range(3) if other != axis))
            view.set(title=f"{PLANES[axis]}, voxel {field.centre[axis]}", xticks=[], yticks=[])
        views[0].set_ylabel(names[path])
    figure.colorbar(shown, ax=rows, aspect=40, label="log10(contribution + 1), scaled to 1")
    figure.suptitle(f"Effective receptive field. Boxes hold {', '.join(f'{share:.0%}' for share in THRESHOLDS)}")
    return figure


def _outline(view: Axes, boxes: Boxes, across: int, up: int) -> None:
    """Outline a voxel and its boxes; what lies outside the slice is not drawn."""
    for side in (1, *(box.side for box in boxes.values())):
        corner = across - side / 2, up - side / 2
        view.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=0.8))


def write_table(fields: dict[str, ReceptiveField], boxes: dict[str, Boxes], path: Path) -> None:
    """Write one row per checkpoint and threshold."""
    rows = [
        [name, threshold, f"{box.volume:.6f}", box.side, fields[name].images]
        for name, found in boxes.items()
        for threshold, box in found.items()
    ]
    write_csv(path, ["checkpoint", "threshold", "share", "side", "images"], rows)


def format_table(fields: dict[str, ReceptiveField], boxes: dict[str, Boxes]) -> str:
    """Format one row per checkpoint with the share of the crop's volume and, in brackets, the side of each box."""
    rows = []
    for name, field in fields.items():
        crop = " x ".join(map(str, field.contributions.shape))
        rows.append([name, field.images, crop, *(f"{volume:.1%} ({side})" for side, volume in boxes[name].values())])
    header = ["checkpoint", "images", "crop", *(f"{threshold:.0%}" for threshold in THRESHOLDS)]
    return tabulate(rows, header, "plain", colalign=("left",), colglobalalign="right", disable_numparse=True)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

"""Predict label maps for the volumes of a folder, on each volume's own grid.

    python test_seg.py --root /data/amos --output predictions --trained_weights runs/amos/best_metric_model.pth
    torchrun --nproc_per_node 4 test_seg.py ... shares the cases among four GPUs

Writes <case>_seg.nii.gz for every case of imagesTs (imagesVal where there is none, or --images), a picture a case with
--preview, and where labels exist dice.csv, dice.json and a printed table. The checkpoint says which network and dataset
it is for; a bare state dict needs --dataset, and --network, --feat_size, --kernel_size and --roi_size where they differ
from the defaults.

A case that cannot be read, predicted or scored is told at the end, in a line and by exit status 1, and all the others
are done. The same command again predicts the cases that are not finished: those without a whole label map on their
image's grid, and those whose image has changed. settings.json in the output folder says what made its predictions;
other weights or settings need another folder or --overwrite.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from engine.runtime.arguments import AMP_CHOICES, add_network_arguments, network_overrides, number
from engine.runtime.errors import OneLineParser, run
from engine.runtime.memory import tune_process
from networks import NETWORKS

if TYPE_CHECKING:
    import torch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(
        "test_seg.py", description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--root", help="dataset folder with imagesTs or imagesVal")
    data.add_argument("--images", help="a folder or a file to predict instead")
    data.add_argument("--labels", help="folder of their labels (labels* beside images*)")
    data.add_argument("--output", required=True, help="folder for predictions; those there are kept")
    data.add_argument("--overwrite", action="store_true", help="predict again what is there")
    data.add_argument("--dataset", help="as in main_train.py (the checkpoint's)")
    data.add_argument("--num_workers", type=number(int, 0), default=1, help="processes that load data")
    data.add_argument("--preview", action="store_true", help="write <case>.png with three planes and contours")

    network = parser.add_argument_group("network")
    network.add_argument("--trained_weights", required=True, help="checkpoint or bare state dict")
    network.add_argument("--network", choices=NETWORKS, help="architecture (the checkpoint's, or REP3D)")
    add_network_arguments(network, ", for a bare state dict")

    window = parser.add_argument_group("sliding window")
    window.add_argument("--roi_size", nargs=3, type=number(int, 1), help="window, voxels (as trained, or 96 96 96)")
    window.add_argument("--sw_batch_size", type=number(int, 1), default=4, help="windows a forward, on a GPU")
    window.add_argument("--overlap", type=number(float, 0, 1, open_high=True), default=0.5, help="of two windows")
    window.add_argument("--gpu", default="0", help="CUDA device number, or cpu")
    window.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="autocast precision")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Predict alone or, under torchrun, a part of the cases."""
    tune_process()  # before PyTorch is imported: here, so that --help and a mistake in a flag answer at once
    from engine.runtime.distributed import join_processes

    with join_processes(args.gpu) as device:
        predict(args, device)


def predict(args: argparse.Namespace, device: "torch.device") -> None:
    """Predict what is not there yet and score all that is; cases that fail are told at the end."""
    from pathlib import Path

    from engine.data.cases import find_test_cases
    from engine.data.datasets import find_description
    from engine.prediction.finished import digest_weights, divide_cases, prediction_settings
    from engine.prediction.predict_cases import Review, predict_cases, report, review_finished
    from engine.prediction.sliding_window import SlidingWindow
    from engine.runtime.devices import amp_name, choose_precision, make_autocast, to_device
    from engine.runtime.distributed import gather, shard
    from engine.runtime.files import make_output_folder
    from engine.weights.load_network import load_network
    from load_datasets_transforms import infer_post_transforms, test_pipeline

    output = Path(args.output)
    make_output_folder(output)
    digest = digest_weights(args.trained_weights)
    weights, overrides = Path(args.trained_weights), network_overrides(args)
    described = None if args.dataset is None else find_description(args.dataset)
    network, roi_size, description = load_network(weights, described, args.network, args.roi_size, overrides)
    cases = find_test_cases(args.root, args.images, args.labels, description)
    precision = choose_precision(args.amp, device, roi_size, network.input_sizes)
    network_flags = {name: getattr(args, name) for name in ("network", "feat_size", "kernel_size", "network_args")}
    settings = prediction_settings(digest, network_flags, roi_size, args.overlap, amp_name(precision), description)
    finished, missing = divide_cases(cases, output, settings, args.overwrite)
    if finished:
        print(f"{len(finished)} of {len(cases)} predictions were there already")

    transforms = test_pipeline(description)
    post_transforms = infer_post_transforms(transforms, output)
    window = SlidingWindow(roi_size, args.sw_batch_size, args.overlap, device, make_autocast(device, precision))
    review = Review(output, description, args.preview)
    network = to_device(network, device)
    predicted = predict_cases(shard(missing), transforms, post_transforms, network, window, review, args.num_workers)
    reviewed = review_finished(shard(finished), review)
    names = [case["id"] for case in [*missing, *finished]]
    outcomes = dict(zip(names, [*gather(predicted), *gather(reviewed)], strict=True))  # each case is one process's
    report([outcomes[case["id"]] for case in cases], output, description)


if __name__ == "__main__":
    sys.exit(run(main, parse_args(), to_lower="--sw_batch_size or --num_workers"))

"""Predict label maps for the volumes of a folder, on each volume's own grid.

    python test_seg.py --root /data/amos --output predictions --trained_weights runs/amos/best_metric_model.pth
    python test_seg.py --root /data/amos --split splits/amos_ct.json ... (the cases of a split file)
    python test_seg.py ... --trained_weights runs/fold_*/best_metric_model.pth (their mean probability)
    torchrun --nproc_per_node 4 test_seg.py ... (four GPUs share the cases)

Writes <case>_seg.nii.gz for every case of imagesTs (of imagesVal if there is no imagesTs, or of --images), one picture
per case with --preview, and for cases with labels dice.csv, dice.json and a table. A checkpoint of main_train.py knows
its network and dataset; a bare state dict needs --dataset, and --network, --feat_size, --kernel_size,
--network_args and --roi_size if they differ from the defaults.

A case that cannot be read, predicted or scored is reported at the end, in one line and by exit status 1; others are
not affected. The same command again predicts the cases that are not finished, and those whose image has changed. Label
maps that somebody else has written or changed are kept. settings.json in the output folder holds the weights and
settings of its predictions; others need another folder or --overwrite.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from engine.data.datasets import DATASETS
from engine.runtime.arguments import (
    AXES,
    NETWORK_FLAGS,
    Axes,
    add_device_arguments,
    add_fix_affine_argument,
    add_network_arguments,
    add_part_argument,
    add_split_arguments,
    add_window_arguments,
    network_overrides,
    number,
)
from engine.runtime.errors import OneLineParser, run
from engine.runtime.memory import tune_process
from networks import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from engine.data.cases import Case
    from engine.data.datasets import DatasetDescription
    from engine.prediction.ensemble import Ensemble
    from engine.weights.load_network import NetworkToPredict


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("test_seg.py", description=__doc__.splitlines()[0])
    data = parser.add_argument_group("data")
    data.add_argument("--root", metavar="DIR", help="dataset folder with imagesTs or imagesVal")
    add_split_arguments(data)
    add_part_argument(data)
    data.add_argument("--images", metavar="PATH", help="folder or file to predict, instead of --root")
    data.add_argument("--labels", metavar="DIR", help="folder of the labels (default: labels* next to images*)")
    add_fix_affine_argument(data)
    folder = "folder for predictions; finished ones are kept"
    data.add_argument("--output", metavar="DIR", default="predictions", help=folder)
    again = "predict all cases again, also in place of label maps that others have changed"
    data.add_argument("--overwrite", action="store_true", help=again)
    data.add_argument("--preview", action="store_true", help="write <case>.png with three planes and contours")
    data.add_argument(
        "--num_workers", type=number(int, 0), default=1, metavar="N", help="data-loading processes per device"
    )

    network = parser.add_argument_group("network (all flags but the first are for weights without a description)")
    several = "checkpoint or bare state dict; the probabilities of several are averaged"
    network.add_argument("--trained_weights", nargs="+", metavar="FILE", required=True, help=several)
    network.add_argument("--dataset", help=f"{', '.join(DATASETS)}, or a JSON file (default: as trained)")
    network.add_argument(
        "--network", metavar="NAME", choices=NETWORKS, help=f"{', '.join(NETWORKS)} (default: as trained, or REP3D)"
    )
    add_network_arguments(network)

    window = parser.add_argument_group("sliding window")
    window.add_argument(
        "--roi_size",
        nargs=3,
        type=number(int, 1),
        metavar=("D", "H", "W"),
        help="size, voxels along R-L, A-P, I-S (default: as trained, or 96 96 96)",
    )
    add_window_arguments(window, overlap=0.5)
    weighting = "weight of the voxels of a window: equal, or falling off from its centre"
    window.add_argument("--window", default="constant", choices=("constant", "gaussian"), help=weighting)
    mirroring = "average over windows mirrored along these axes (all without a name): RL, AP, IS"
    window.add_argument("--mirror", nargs="*", action=Axes, choices=AXES, metavar="AXIS", help=mirroring)

    result = parser.add_argument_group("result")
    largest = "keep only the largest connected component of these classes or regions"
    result.add_argument("--keep_largest", nargs="+", metavar="NAME", help=largest)
    result.add_argument(
        "--save_probabilities",
        nargs="?",
        choices=("native", "network"),
        const="native",
        help="write the probabilities of all classes, on the grid of the image (native, the default) or the network",
    )

    add_device_arguments(parser.add_argument_group("execution"))
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Predict all cases or, under torchrun, this process's shard of them."""
    tune_process()  # before PyTorch is imported, which happens in functions: --help and wrong flags answer at once
    from engine.runtime.distributed import join_processes

    with join_processes(args.gpu) as device:
        predict(args, device)


def find_cases(args: argparse.Namespace, description: "DatasetDescription", trained_on: frozenset[str]) -> "list[Case]":
    """Find the cases to predict; a line names those among them that the weights were trained on."""
    from engine.data.cases import find_test_cases
    from engine.data.split_file import find_split
    from engine.runtime.wording import count_of, list_some

    split = find_split(args.split, args.fold)
    if split:
        print(f"split: {split}")
    cases = find_test_cases(args.root, args.images, args.labels, description, split, args.part)
    if known := sorted(trained_on & {case["id"] for case in cases}):
        found = f"found {len(known)} of {count_of(len(cases), 'case')} among those that the weights were trained on"
        print(f"warning: {found} ({list_some(known)}): their Dice says nothing about other cases")
    return cases


def make_ensemble(
    networks: "Sequence[NetworkToPredict]", args: argparse.Namespace, device: "torch.device"
) -> "Ensemble":
    """Move networks to the device, as an ensemble that predicts as the flags say."""
    from engine.prediction.ensemble import Ensemble, Member
    from engine.prediction.sliding_window import SlidingWindow
    from engine.runtime.devices import amp_name, choose_precision, make_autocast, to_device

    members = []
    for network, size, *_ in networks:
        precision = choose_precision(args.amp, device, size, network.input_sizes, gradients=False)
        autocast = make_autocast(device, precision)
        window = SlidingWindow(size, args.sw_batch_size, args.overlap, device, autocast, args.window)
        members.append(Member(to_device(network, device), window, amp_name(precision)))
    return Ensemble(members, [AXES.index(axis) for axis in args.mirror or ()])


def predict(args: argparse.Namespace, device: "torch.device") -> None:
    """Predict the cases that are not finished, and score all of them; failed cases are reported at the end."""
    import shutil
    from dataclasses import replace
    from pathlib import Path

    from engine.data.datasets import find_description
    from engine.prediction.components import find_structures
    from engine.prediction.ensemble import name_sided_classes
    from engine.prediction.finished import divide_cases
    from engine.prediction.outputs import check_outputs
    from engine.prediction.predict_cases import Review, predict_cases, report, review_finished
    from engine.prediction.probabilities import estimate_bytes
    from engine.prediction.settings import digest_weights, prediction_settings
    from engine.runtime.distributed import gather, shard
    from engine.runtime.files import make_output_folder
    from engine.runtime.wording import list_some
    from engine.weights.load_network import load_networks
    from load_datasets_transforms import infer_post_transforms, test_pipeline

    output = Path(args.output)
    digests = digest_weights(args.trained_weights)
    weights, overrides = list(map(Path, args.trained_weights)), network_overrides(args)
    described = None if args.dataset is None else find_description(args.dataset)
    networks = load_networks(weights, described, args.network, args.roi_size, overrides)
    description = replace(networks[0].description, fix_affine=args.fix_affine)
    for note in description.notes:
        print(note)
    structures = find_structures(args.keep_largest or [], description.structures)
    if "RL" in (args.mirror or ()) and (sided := name_sided_classes(description.classes)):
        print(f"warning: --mirror: RL exchanges left and right, which {list_some(sided)} needs training with")
    cases = find_cases(args, description, frozenset().union(*(network.trained_on for network in networks)))
    make_output_folder(output)
    check_outputs(cases, output)
    ensemble = make_ensemble(networks, args, device)
    network_flags = {name: getattr(args, name) for name in ("network", *NETWORK_FLAGS, "network_args")}
    kept_classes = [[description.classes[index] for index in members] for members in structures]
    settings = prediction_settings(digests, network_flags, ensemble, kept_classes, description)
    grid = args.save_probabilities
    finished, missing, kept = divide_cases(cases, output, settings, description.labels, args.overwrite, grid)
    if finished:
        print(f"{len(finished)} of {len(cases)} predictions are finished already")
    if grid and missing:
        size = estimate_bytes(missing, grid, description)
        free = f"{shutil.disk_usage(output).free / 1e9:.1f} GB are free in {output}"
        print(f"--save_probabilities: at most {size / 1e9:.1f} GB, before compression; {free}")

    transforms = test_pipeline(description)
    post_transforms = infer_post_transforms(output, transforms, structures, grid)
    review = Review(output, description, args.preview)
    predicted = predict_cases(shard(missing), transforms, post_transforms, ensemble, review, args.num_workers)
    reviewed = review_finished(shard(finished), review)
    names = [case["id"] for case in [*missing, *finished]]
    outcomes = dict(zip(names, [*gather(predicted), *gather(reviewed)], strict=True))  # each case was one process's
    report([outcomes[case["id"]] for case in cases if case["id"] in outcomes], kept, output, description)


if __name__ == "__main__":
    sys.exit(run(main, parse_args(), to_lower="--sw_batch_size or --num_workers"))

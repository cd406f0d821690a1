"""Flags of the training recipe: the paper's, and what users may add to it."""

import argparse
from typing import Any

from engine.runtime.arguments import AXES, Axes, number, positive

CROP_BALANCES, AUGMENTATIONS = ("voxels", "classes"), ("paper", "strong")
# The flags of crops and augmentation that the paper's recipe lacks, and the values with which they change nothing.
SAMPLING = {"crop_balance": "voxels", "foreground_share": 0.5, "augmentation": "paper", "mirror": None}


def add_recipe_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the paper's recipe; the defaults are the paper's."""
    group.add_argument("--max_iter", type=number(int, 1), default=60000, metavar="N", help="training iterations")
    group.add_argument("--batch_size", type=number(int, 1), default=1, metavar="N", help="cases per batch and device")
    group.add_argument("--crop_sample", type=number(int, 1), default=2, metavar="N", help="random crops per case")
    side, size = number(int, 1), "size of crops and windows, voxels (R-L, A-P, I-S)"
    group.add_argument("--roi_size", nargs=3, type=side, default=[96, 96, 96], metavar=("D", "H", "W"), help=size)
    group.add_argument("--optim", default="AdamW", choices=("AdamW", "Adam", "SGD"), help="optimiser")
    group.add_argument("--lr", type=positive, default=1e-4, metavar="RATE", help="peak learning rate")
    factor = "the masks learn at this factor times the learning rate"
    group.add_argument("--mask_lr_factor", type=positive, default=1.0, metavar="FACTOR", help=factor)
    group.add_argument("--weight_decay", type=number(float, 0), default=0.08, metavar="DECAY", help="weight decay")
    schedules = ("warmup_cosine", "constant")
    group.add_argument("--lr_schedule", default=schedules[0], choices=schedules, help="learning-rate schedule")
    warm_up = "warm-up iterations (default: a fiftieth of --max_iter)"
    group.add_argument("--warmup_iter", type=number(int, 0), metavar="N", help=warm_up)
    group.add_argument("--sync_batchnorm", action="store_true", help="normalise over the batches of all processes")
    group.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="N", help="seed of all random numbers"
    )


def add_extension_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags of what the paper's recipe lacks; by default all of it is off."""
    _add_sampling_arguments(group)


def _add_sampling_arguments(group: argparse._ArgumentGroup) -> None:
    centre = "crops on foreground are centred on any of its voxels, or on one of a class that is drawn first"
    group.add_argument("--crop_balance", choices=CROP_BALANCES, help=centre)
    share = "share of the crops that are centred on foreground"
    group.add_argument("--foreground_share", type=number(float, 0, 1), metavar="SHARE", help=share)
    transforms = "random transforms of crops: the paper's, or more and stronger ones, as nnU-Net's"
    group.add_argument("--augmentation", choices=AUGMENTATIONS, help=transforms)
    mirroring = "mirror crops at random along these axes (all without a name): RL, AP, IS"
    group.add_argument("--mirror", nargs="*", action=Axes, choices=AXES, metavar="AXIS", help=mirroring)
    group.set_defaults(**SAMPLING)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the values of the flags in ``SAMPLING``; notebooks may lack any of them."""
    return {name: getattr(args, name, default) for name, default in SAMPLING.items()}

"""Flags of the training recipe: the paper's, and what users may add to it."""

import argparse
from pathlib import Path
from typing import Any

from engine.runtime.arguments import AXES, DEFAULT_ROI_SIZE, Axes, fraction, number, positive

RECIPES = ("paper", "best")  # by name; the flags of the first are the defaults
CROP_BALANCES, AUGMENTATIONS = ("voxels", "classes"), ("paper", "strong")
# Flags of crops and augmentation beyond the paper's recipe, and the values that leave them off.
SAMPLING = {"crop_balance": "voxels", "foreground_share": 0.5, "augmentation": "paper", "mirror": None}
# All flags beyond the paper's recipe, likewise.
EXTENSIONS = {
    **SAMPLING,
    "accumulate": 1,
    "ema": 0.0,
    "deep_supervision": False,
    "freeze_encoder": 0,
    "layer_decay": 1.0,
}


def add_recipe_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the paper's recipe; the defaults are the paper's."""
    named = "flags of recipes/NAME.args, which other flags override"
    group.add_argument("--recipe", choices=RECIPES, default=RECIPES[0], help=named)
    group.add_argument("--max_iter", type=number(int, 1), default=60000, metavar="N", help="training iterations")
    group.add_argument("--batch_size", type=number(int, 1), default=1, metavar="N", help="cases per batch and device")
    group.add_argument("--crop_sample", type=number(int, 1), default=2, metavar="N", help="random crops per case")
    side, size = number(int, 1), "size of crops and windows, voxels (R-L, A-P, I-S)"
    default = " ".join(map(str, DEFAULT_ROI_SIZE))
    size = f"{size} (default: {default}, or what --pretrained_weights needs)"
    group.add_argument("--roi_size", nargs=3, type=side, metavar=("D", "H", "W"), help=size)
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
    decay = "decay per iteration of a moving average of the weights, which is validated and saved; 0 for none"
    group.add_argument("--ema", type=number(float, 0, 1, open_high=True), metavar="DECAY", help=decay)
    batches = "batches per iteration, in the memory of one: their gradients are averaged"
    group.add_argument("--accumulate", type=number(int, 1), metavar="N", help=batches)
    grids = "train the logits of coarser decoder stages, too, for networks that have them"
    group.add_argument("--deep_supervision", action="store_true", help=grids)
    frozen = "with --pretrain True: keep the encoder as it is for the first N iterations"
    group.add_argument("--freeze_encoder", type=number(int, 0), metavar="N", help=frozen)
    decay = "with --pretrain True: the encoder's last stage learns at --lr times FACTOR, the one before at FACTOR^2"
    group.add_argument("--layer_decay", type=fraction, metavar="FACTOR", help=decay)
    group.set_defaults(**EXTENSIONS)


def recipe_file(name: str) -> Path:
    """Return the file with the flags of a recipe of ``RECIPES``."""
    return Path(__file__).parents[2] / "recipes" / f"{name}.args"


def _add_sampling_arguments(group: argparse._ArgumentGroup) -> None:
    centre = "crops on foreground are centred on any of its voxels, or on one of a class that is drawn first"
    group.add_argument("--crop_balance", choices=CROP_BALANCES, help=centre)
    share = "share of the crops that are centred on foreground"
    group.add_argument("--foreground_share", type=number(float, 0, 1), metavar="SHARE", help=share)
    transforms = "random transforms of crops: the paper's, or more and stronger ones, as nnU-Net's"
    group.add_argument("--augmentation", choices=AUGMENTATIONS, help=transforms)
    mirroring = "mirror crops at random along these axes (all without a name): RL, AP, IS"
    group.add_argument("--mirror", nargs="*", action=Axes, choices=AXES, metavar="AXIS", help=mirroring)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the values of the flags in ``SAMPLING``; notebooks may lack any of them."""
    return {name: getattr(args, name, default) for name, default in SAMPLING.items()}

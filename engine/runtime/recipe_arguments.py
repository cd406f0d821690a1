"""Flags of the training recipe: the paper's, and what users may add to it."""

import argparse

from engine.runtime.arguments import number, positive


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
    decay = "decay per iteration of a moving average of the weights, which is validated and saved (0: none)"
    group.add_argument("--ema", type=number(float, 0, 1, open_high=True), default=0.0, metavar="DECAY", help=decay)
    batches = "batches per iteration, in the memory of one: their gradients are averaged"
    group.add_argument("--accumulate", type=number(int, 1), default=1, metavar="N", help=batches)
    grids = "train the logits of coarser decoder stages, too, for networks that have them"
    group.add_argument("--deep_supervision", action="store_true", help=grids)

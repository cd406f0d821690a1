"""The network of a checkpoint, ready to predict."""

import argparse
from dataclasses import replace
from pathlib import Path

from engine.checkpoints import NetworkConfig, config_of, flag_overrides, load_checkpoint
from engine.description import DatasetDescription
from engine.errors import InputError
from engine.weights import load_weights
from load_datasets_transforms import find_description
from networks.base import SegmentationNetwork

FLAG = "--trained_weights"


def load_network(args: argparse.Namespace) -> tuple[SegmentationNetwork, tuple[int, ...], DatasetDescription]:
    """The deployed network with its weights in evaluation mode, its window (D, H, W), and what it was trained for."""
    path = Path(args.trained_weights)
    content = load_checkpoint(path, FLAG)
    saved = config_of(content, path, FLAG)
    if saved is None:
        config, description = describe_state_dict(args)
    else:
        config, description = with_flags(args, *saved)
    network = config.build(deploy=True, source=f"{FLAG}: {path}" if saved else None)
    load_weights(network, content, f"{FLAG}: {path}", strict=True)
    roi_size = tuple(args.roi_size or config.roi_size)
    try:
        network.input_sizes.check(roi_size, "--roi_size")
    except ValueError as error:
        raise InputError(str(error)) from error
    return network.eval(), roi_size, description


def describe_state_dict(args: argparse.Namespace) -> tuple[NetworkConfig, DatasetDescription]:
    """What the flags say of a state dict that says nothing of itself."""
    if args.dataset is None:
        raise InputError(f"--dataset: found none, expected one because {args.trained_weights} is a bare state dict")
    description = find_description(args.dataset)
    return NetworkConfig.from_flags(args, description), description


def with_flags(
    args: argparse.Namespace, config: NetworkConfig, description: DatasetDescription
) -> tuple[NetworkConfig, DatasetDescription]:
    """What the checkpoint says, flags before it; strict loading refuses a network that the weights do not fit."""
    if args.dataset is not None:
        description = find_description(args.dataset)
        sizes = len(description.channels), len(description.classes)
        if sizes != (config.in_chans, config.out_chans):
            raise InputError(
                f"--dataset: found {sizes[0]} channels and {sizes[1]} classes, expected {config.in_chans} and "
                f"{config.out_chans} as in {args.trained_weights}"
            )
    if args.network not in (None, config.network):  # whose arguments are its own
        config = replace(config, network=args.network, overrides={})
    return replace(config, overrides={**config.overrides, **flag_overrides(args)}), description

"""Load the network of a checkpoint: for prediction, or as it was trained."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.data.datasets import PREPARATION, DatasetDescription
from engine.data.splits import TRAINING
from engine.runtime.arguments import name_network_flags
from engine.runtime.errors import InputError
from engine.weights.checkpoints import NetworkConfig, config_of, load_checkpoint, split_of
from engine.weights.load_weights import load_weights, weights_of
from networks.base import SegmentationNetwork

FLAG = "--trained_weights"
OF_NNUNET = "trainer_name"  # key of nnU-Net's checkpoints
# Fields of a description that the networks of an ensemble must have in common.
SHARED = ("labels", "channels", *PREPARATION)


class TrainedNetwork(NamedTuple):
    """Network of a checkpoint of main_train.

    Args:
        network: the network with its weights.
        config: its configuration.
        description: description of the dataset.
        content: the checkpoint.
    """

    network: SegmentationNetwork
    config: NetworkConfig
    description: DatasetDescription
    content: dict[str, Any]

    @property
    def was_folded(self) -> bool:
        """Whether loading has folded the weights: the checkpoint has tensors that the network lacks."""
        ignored = self.network.ignored_prefixes
        names = {name for name in weights_of(self.content, "checkpoint") if not name.startswith(ignored)}
        return not names <= self.network.state_dict().keys()


class NetworkToPredict(NamedTuple):
    """Network in its deployed form, with what prediction needs to know of its training.

    Args:
        network: the network with its weights, in evaluation mode.
        window: (D, H, W) of the sliding window, voxels.
        description: description of the dataset that it predicts.
        trained_on: ids of the cases that it was trained on, as far as the file knows.
    """

    network: SegmentationNetwork
    window: tuple[int, ...]
    description: DatasetDescription
    trained_on: frozenset[str]


def load_trained(path: Path, flag: str, deploy: bool = False) -> TrainedNetwork:
    """Load the network of a checkpoint of main_train, as it was trained.

    Args:
        path: the checkpoint.
        flag: flag that named the file, for messages.
        deploy: whether to load the folded form instead.
    Raises:
        InputError: the file is no checkpoint of main_train, or its weights do not fit the network.
    """
    content = load_checkpoint(path, flag)
    described = config_of(content, path, flag)
    if described is None:
        found = "of nnU-Net" if OF_NNUNET in content else "a bare state dict"
        raise InputError(f"{flag}: {path} is {found}, expected a checkpoint of main_train.py")
    network = described[0].build(deploy=deploy, source=f"{flag}: {path}")
    load_weights(network, content, f"{flag}: {path}", strict=True)
    return TrainedNetwork(network, *described, content)


def name_checkpoints(paths: Sequence[str], flag: str) -> dict[str, str]:
    """Name checkpoints by the folder of their run, or by their path where folders have the same name.

    Args:
        paths: the checkpoints.
        flag: flag that named the files, for messages.
    Raises:
        InputError: a checkpoint is given twice.
    """
    runs = {path: Path(path).resolve().parent.name for path in paths}
    if len(runs) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise InputError(f"{flag}: found {twice} twice, expected different files")
    names = list(runs.values())
    return {path: path if names.count(run) > 1 else run for path, run in runs.items()}


def build_start(config: NetworkConfig, seed: int) -> SegmentationNetwork:
    """Build a network as main_train.py does with this seed, before the first iteration."""
    torch.manual_seed(seed)
    return config.build()


def load_networks(
    paths: Sequence[Path],
    description: DatasetDescription | None,
    network: str | None,
    roi_size: Sequence[int] | None,
    overrides: dict[str, Any],
) -> list[NetworkToPredict]:
    """Load the networks of an ensemble; they may differ in everything but what they read and what they predict.

    Args: as ``load_network``, for every file.
    Raises:
        InputError: as ``load_network``; two files differ in labels, channels or preprocessing.
    """
    loaded = [load_network(path, description, network, roi_size, overrides) for path in paths]
    for path, other in zip(paths, loaded, strict=True):
        if differing := other.description.differences(loaded[0].description, SHARED):
            raise InputError(f"{FLAG}: {path} was trained with {differing[0]} as {paths[0]}")
    return loaded


def load_network(
    path: Path,
    description: DatasetDescription | None,
    network: str | None,
    roi_size: Sequence[int] | None,
    overrides: dict[str, Any],
) -> NetworkToPredict:
    """Load the network of a checkpoint or state dict in its deployed form, with weights, in evaluation mode.

    Arguments that are None are read from the checkpoint; a state dict holds no settings, so they have their defaults.

    Args:
        path: file of ``--trained_weights``.
        description: description of the dataset; required for a state dict.
        network: key of ``NETWORKS``.
        roi_size: (D, H, W) of the window, voxels.
        overrides: arguments of the network's constructor.
    Raises:
        InputError: the file holds no weights, or they do not fit the other arguments.
    """
    content = load_checkpoint(path, FLAG)
    saved = config_of(content, path, FLAG)
    if saved is not None:
        config, description = _adapt(*saved, description, network, overrides, path)
    elif OF_NNUNET in content:
        raise InputError(
            f"{FLAG}: {path} is of nnU-Net, which prepares volumes in another way, expected a checkpoint of "
            "main_train.py; nnUNetv2_predict predicts with it"
        )
    elif description is not None:
        config = NetworkConfig.for_dataset(description, network, roi_size, overrides)
    else:
        raise InputError(f"--dataset: found none, expected one because {path} is a bare state dict")
    source = None  # of a state dict's network: the flags
    if saved is not None:
        source = f"{FLAG}: {path}" + (f" with {name_network_flags(overrides)}" if overrides else "")
    built = config.build(deploy=True, source=source)
    load_weights(built, content, f"{FLAG}: {path}", strict=True)
    window = tuple(roi_size or config.roi_size)
    try:
        built.input_sizes.check(window, "--roi_size")
    except ValueError as error:
        raise InputError(str(error)) from error
    trained_on = split_of(content).get(TRAINING)
    known = frozenset(map(str, trained_on)) if isinstance(trained_on, list) else frozenset()
    return NetworkToPredict(built.eval(), window, description, known)


def _adapt(
    config: NetworkConfig,
    saved: DatasetDescription,
    description: DatasetDescription | None,
    network: str | None,
    overrides: dict[str, Any],
    path: Path,
) -> tuple[NetworkConfig, DatasetDescription]:
    """Apply the flags to a checkpoint's config and description; strict loading refuses later what does not fit."""
    adapted = description or saved
    found = len(adapted.channels), len(adapted.classes)
    if found != (config.in_chans, config.out_chans):
        # Without --dataset, of an earlier version in which "ignore" was the name of a class.
        of = "--dataset" if description is not None else f"{FLAG}: the dataset of {path}"
        raise InputError(
            f"{of}: found {found[0]} channels and {found[1]} classes, expected {config.in_chans} and "
            f"{config.out_chans} as in {path}"
        )
    if network not in (None, config.network):  # the checkpoint's arguments are for another network
        config = replace(config, network=network, overrides={})
    return replace(config, overrides={**config.overrides, **overrides}), adapted

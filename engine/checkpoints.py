"""Checkpoints: plain dictionaries of tensors and plain values, the weights under "model"."""

import argparse
import pickle
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from engine.description import DatasetDescription
from engine.errors import InputError
from engine.files import write_whole
from networks import SegmentationNetwork, build_network


@dataclass(frozen=True)
class NetworkConfig:
    """What it takes to build the network of a checkpoint again; stored in it as a plain dictionary under "config".

    Args:
        network: key of ``NETWORKS``.
        in_chans: input channels.
        out_chans: classes, background included.
        roi_size: (D, H, W) of the crops it was trained on, voxels.
        overrides: further arguments of ``build_network``.
    """

    network: str
    in_chans: int
    out_chans: int
    roi_size: tuple[int, ...]
    overrides: dict[str, Any]

    @classmethod
    def from_flags(cls, args: argparse.Namespace, description: DatasetDescription) -> Self:
        """What the flags and the dataset say of the network."""
        sizes = len(description.channels), len(description.classes)
        return cls(args.network or "REP3D", *sizes, tuple(args.roi_size or (96, 96, 96)), flag_overrides(args))

    def build(self, deploy: bool = False) -> SegmentationNetwork:
        """The network, randomly initialised; InputError where the arguments do not make one."""
        try:
            return build_network(
                self.network, self.in_chans, self.out_chans, self.roi_size, deploy=deploy, **self.overrides
            )
        except ValueError as error:
            raise InputError(f"--network {self.network}: {error}") from error

    def to_plain(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return {**asdict(self), "roi_size": list(self.roi_size)}


def flag_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The constructor's arguments that were given as flags."""
    return {name: getattr(args, name) for name in ("feat_size", "kernel_size") if getattr(args, name) is not None}


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    write_whole(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, flag: str) -> dict[str, Any]:
    """Read a checkpoint without running any code from it.

    Args:
        path: the file.
        flag: the flag that named it, for messages.
    Raises:
        InputError: no such file, damaged, or one that needs pickle code execution.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of old pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{flag}: {path} is no plain checkpoint, expected tensors and plain values only (pickled code is never run)"
        ) from error
    except OSError as error:
        raise InputError(f"{flag}: {path} cannot be read ({error.strerror}), expected a checkpoint") from error
    except Exception as error:  # a damaged archive fails in any way
        raise InputError(f"{flag}: {path} is damaged, expected a whole checkpoint") from error
    if not isinstance(content, dict):
        raise InputError(f"{flag}: {path} holds a {type(content).__name__}, expected a dictionary with the weights")
    return content


def weights_of(content: dict[str, Any], path: Path, flag: str) -> dict[str, Tensor]:
    """The weights of a checkpoint or of a bare state dict; InputError where there are none."""
    weights = content.get("model", content)
    if not weights or not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{flag}: {path} holds no weights, expected them under 'model' or as a bare state dict")
    return weights


def config_of(content: dict[str, Any], path: Path, flag: str) -> tuple[NetworkConfig, DatasetDescription] | None:
    """What network a checkpoint holds and what it was trained for; None for a bare state dict."""
    if "config" not in content:
        return None
    try:
        config = NetworkConfig(**{**content["config"], "roi_size": tuple(content["config"]["roi_size"])})
        dict(**config.overrides)  # a TypeError unless it holds arguments by name
        return config, DatasetDescription.from_json(content["description"], str(path))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{flag}: {path} does not describe its network, expected a checkpoint of main_train"
        ) from error


def load_weights(network: nn.Module, weights: dict[str, Tensor], path: Path, flag: str) -> None:
    """Load every weight strictly; InputError with the counts that tell another network or class count."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        own = network.state_dict()
        shared = [key for key in weights if key in own]
        resized = [key for key in shared if own[key].shape != weights[key].shape]
        example = f", such as {resized[0]} {tuple(weights[resized[0]].shape)}" if resized else ""
        raise InputError(
            f"{flag}: {path} does not fit the network: found {len(weights)} tensors, {len(shared)} of them known and "
            f"{len(resized)} of other shape{example}; expected the {len(own)} of this architecture and class count"
        ) from error

"""Checkpoints: plain dictionaries of tensors and plain values, the weights under "model"."""

import errno
import operator
import os
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.serialization import safe_globals

from engine.data.datasets import DatasetDescription
from engine.runtime.distributed import barrier, gather, process_rank
from engine.runtime.errors import InputError, is_out_of_memory
from engine.runtime.files import DAMAGED, LAST, PREVIOUS, write_whole
from networks import build_network
from networks.base import SegmentationNetwork

# Numbers only, which nnU-Net keeps beside its weights; by the name they had in NumPy 1 and by the one they have now.
MAKE_SCALAR = np.float64().__reduce__()[0]
NUMPY_SCALARS: list[Any] = [
    *((MAKE_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
]


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
    def for_dataset(
        cls,
        description: DatasetDescription,
        network: str | None,
        roi_size: Sequence[int] | None,
        overrides: dict[str, Any],
    ) -> Self:
        """The config of a network for a dataset; of ``REP3D`` and crops of 96^3 where these are None."""
        sizes = len(description.channels), len(description.classes)
        return cls(network or "REP3D", *sizes, tuple(roi_size or (96, 96, 96)), overrides)

    def build(self, deploy: bool = False, source: str | None = None) -> SegmentationNetwork:
        """The network, randomly initialised.

        Args:
            deploy: the folded form.
            source: where the arguments come from, for messages; by default the flags.
        Raises:
            InputError: the arguments do not make a network, or one that does not fit in memory.
        """
        if source is None:
            others = self.overrides.keys() - {"feat_size", "kernel_size"}
            source = f"--network {self.network}" + (" --network_args" if others else "")
        try:
            return build_network(
                self.network, self.in_chans, self.out_chans, self.roi_size, deploy=deploy, **self.overrides
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"{source}: {str(error).removeprefix(f'{self.network}: ')}") from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(f"{source}: the network does not fit in memory, expected a smaller one") from error

    def to_plain(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return {**asdict(self), "roi_size": list(self.roi_size)}


def save_checkpoint(path: Path, content: dict[str, Any], keep: Path | None = None) -> None:
    """Write a checkpoint whole or not at all; of many processes the first writes.

    Args:
        path: the file.
        content: tensors and plain values.
        keep: the name that an older checkpoint at ``path`` gets.
    """
    if process_rank() == 0:
        write_whole(path, lambda file: torch.save(content, file), keep)


def load_checkpoint(path: Path, flag: str) -> dict[str, Any]:
    """Read a checkpoint without running any code from it.

    Args:
        path: the file.
        flag: the flag that named it, for messages.
    Raises:
        InputError: no such file, damaged, or one that needs pickle code execution.
    """
    try:
        _check_sums(path)
        with warnings.catch_warnings(action="ignore"), safe_globals(NUMPY_SCALARS):  # warned of old pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{flag}: {path} is no plain checkpoint, expected tensors and plain values only (pickled code is never run)"
        ) from error
    except OSError as error:
        raise InputError(f"{flag}: {path} cannot be read ({error.strerror}), expected a checkpoint") from error
    except Exception as error:  # a damaged archive fails in any way
        if is_out_of_memory(error):
            raise
        raise InputError(f"{flag}: {path} is damaged, expected a whole checkpoint") from error
    if not isinstance(content, dict):
        raise InputError(f"{flag}: {path} holds a {type(content).__name__}, expected a dictionary with the weights")
    return content


def _check_sums(path: Path) -> None:
    """Compare the CRC-32 of everything in a checkpoint's archive, which PyTorch writes but does not look at.

    Raises:
        BadZipFile: they differ. Checkpoints of before PyTorch 1.6 are no archives and have none.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(name)


def load_last_good(folder: Path, flag: str) -> dict[str, Any]:
    """The training state of a run: the last checkpoint, or where it is damaged the one before, said in a line.

    In that case the damaged file is renamed to ``DAMAGED`` and the one before takes its place.

    Args:
        folder: the run's.
        flag: for messages.
    Raises:
        InputError: see ``load_checkpoint``; neither is whole, or there is none.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    found = None
    try:
        content = load_checkpoint(last, flag)
    except InputError as error:
        cause = error.__cause__  # a file that cannot be reached now may be whole; one on a bad sector is not
        lost = not isinstance(cause, OSError) or cause.errno in (errno.ENOENT, errno.EIO)
        if not lost or not previous.exists():
            raise
        found = str(error)
    told = [text for text in gather([found]) if text is not None]
    if not told:
        return content
    content = load_checkpoint(previous, flag)  # all of the processes do, if one has to
    print(f"{told[0]}; going on from {previous}, iteration {content.get('iteration')}")
    barrier()  # each has read what is now renamed
    if process_rank() == 0:
        if last.exists():
            os.replace(last, folder / DAMAGED)
        os.replace(previous, last)
    return content


def config_of(content: dict[str, Any], path: Path, flag: str) -> tuple[NetworkConfig, DatasetDescription] | None:
    """What network a checkpoint holds and what it was trained for; None for a bare state dict."""
    if "config" not in content:
        return None
    try:
        config = NetworkConfig(**{**content["config"], "roi_size": tuple(content["config"]["roi_size"])})
        dict(**config.overrides)  # a TypeError unless it holds arguments by name
        if not isinstance(config.network, str):
            raise TypeError(config.network)
        for number in (config.in_chans, config.out_chans, *config.roi_size):
            operator.index(number)  # a TypeError unless it is whole
        return config, DatasetDescription.from_json(content["description"], str(path))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{flag}: {path} does not describe its network, expected a checkpoint of main_train"
        ) from error

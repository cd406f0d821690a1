"""Checkpoints: plain dictionaries of tensors and plain values, the weights under "model". Reads safetensors, too."""

import errno
import json
import operator
import os
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.serialization import safe_globals

from engine.data.datasets import DatasetDescription
from engine.data.splits import TRAINING
from engine.runtime.arguments import DEFAULT_NETWORK, DEFAULT_ROI_SIZE, NETWORK_FLAGS
from engine.runtime.distributed import barrier, gather, process_rank
from engine.runtime.errors import InputError, is_out_of_memory
from engine.runtime.files import DAMAGED, LAST, PREVIOUS, write_whole
from networks import NETWORKS, build_network
from networks.base import SegmentationNetwork
from networks.pretrained import WEIGHTS, read_weights

# NumPy numbers, which nnU-Net stores next to its weights; under their names in NumPy 1 and in NumPy 2.
MAKE_SCALAR = np.float64().__reduce__()[0]
NUMPY_SCALARS: list[Any] = [
    *((MAKE_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
]


@dataclass(frozen=True)
class NetworkConfig:
    """Configuration from which a checkpoint's network is rebuilt, stored in it as a plain dictionary under "config".

    Args:
        network: key of ``NETWORKS``.
        in_chans: input channels.
        out_chans: classes, background included.
        roi_size: (D, H, W) of the training crops, voxels.
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
        """Create the configuration of a network for a dataset; by default of ``REP3D`` and crops of 96^3."""
        sizes = len(description.channels), len(description.classes)
        return cls(network or DEFAULT_NETWORK, *sizes, tuple(roi_size or DEFAULT_ROI_SIZE), overrides)

    def build(self, deploy: bool = False, source: str | None = None) -> SegmentationNetwork:
        """Build the network, randomly initialised.

        Args:
            deploy: whether to build the folded form.
            source: origin of the arguments, for messages; by default the flags.
        Raises:
            InputError: the arguments are invalid for the network, or it does not fit in memory.
        """
        if source is None:
            source = f"--network {self.network}" + (
                " --network_args" if self.overrides.keys() - set(NETWORK_FLAGS) else ""
            )
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
        """Convert to a dictionary of plain values."""
        return {**asdict(self), "roi_size": list(self.roi_size)}


def save_checkpoint(path: Path, content: dict[str, Any], keep: Path | None = None) -> None:
    """Write a checkpoint atomically; only rank 0 writes.

    Args:
        path: file to write.
        content: tensors and plain values.
        keep: path to which an older checkpoint at ``path`` is renamed.
    """
    if process_rank() == 0:
        write_whole(path, lambda file: torch.save(content, file), keep)


def load_checkpoint(path: Path, flag: str) -> dict[str, Any]:
    """Read a checkpoint or a safetensors file without running any code from it.

    Args:
        path: file to read.
        flag: flag that named the file, for messages.
    Returns: the checkpoint; of a safetensors file of another program only "model".
    Raises:
        InputError: the file does not exist, is damaged, or needs pickle code execution.
    """
    try:
        if path.suffix == Path(WEIGHTS).suffix:
            weights, settings = read_weights(path)
            return {"model": weights, **settings}
        _check_sums(path)
        with warnings.catch_warnings(action="ignore"), safe_globals(NUMPY_SCALARS):  # warns of old pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{flag}: {path} is no plain checkpoint, expected tensors and plain values only (pickled code is never run)"
        ) from error
    except OSError as error:
        raise unreadable(path, flag, error) from error
    except ImportError as error:
        raise InputError(f"{flag}: {error}") from error
    except Exception as error:  # a damaged archive may raise any error
        if is_out_of_memory(error):
            raise
        raise InputError(f"{flag}: {path} is damaged, expected a whole checkpoint") from error
    if not isinstance(content, dict):
        raise InputError(f"{flag}: {path} holds a {type(content).__name__}, expected a dictionary with the weights")
    return content


def unreadable(path: Path, flag: str, error: OSError) -> InputError:
    """Describe a checkpoint that cannot be read; for a folder of ``save_pretrained``, name the file in it."""
    inside = isinstance(error, IsADirectoryError) and (path / WEIGHTS).is_file()
    expected = path / WEIGHTS if inside else "a checkpoint"
    return InputError(f"{flag}: {path} cannot be read ({error.strerror}), expected {expected}")


def _check_sums(path: Path) -> None:
    """Verify the CRC-32 of every file in a checkpoint's archive, which PyTorch writes but does not check.

    Raises:
        UnpicklingError: it is an archive of something else, for instance of torch.export.
        BadZipFile: a checksum differs. Checkpoints from before PyTorch 1.6 are no archives and have no checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(name)
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            raise pickle.UnpicklingError(f"{path} has no data.pkl")


def load_last_good(folder: Path, flag: str) -> dict[str, Any]:
    """Load the training state of a run: the last checkpoint or, if it is damaged, the previous one.

    In the latter case the damaged file is renamed to ``DAMAGED``, the previous one takes its place, and a printed line
    reports it.

    Args:
        folder: folder of the run.
        flag: flag to name in messages.
    Raises:
        InputError: see ``load_checkpoint``; both are damaged, or there is none.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    found = None
    try:
        content = load_checkpoint(last, flag)
    except InputError as error:
        cause = error.__cause__  # a file that is out of reach for now may be intact; one on a bad sector is not
        lost = not isinstance(cause, OSError) or cause.errno in (errno.ENOENT, errno.EIO)
        if not lost or not previous.exists():
            raise
        found = str(error)
    failures = [text for text in gather([found]) if text is not None]
    if not failures:
        return content
    content = load_checkpoint(previous, flag)  # in all processes, if one has to
    print(f"{failures[0]}; going on from {previous}, iteration {content.get('iteration')}")
    barrier()  # every process has read the file before it is renamed
    if process_rank() == 0:
        if last.exists():
            os.replace(last, folder / DAMAGED)
        os.replace(previous, last)
    return content


def complete_overrides(overrides: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Add the arguments of a network whose defaults have changed since its checkpoint was written.

    Args:
        overrides: arguments of the network's constructor that were given then.
        content: the checkpoint.
    """
    names = content.get("model", ())
    masks = {name.rpartition(".lrbm.")[2] for name in names if ".lrbm." in name}
    additive = any(name.startswith("generator.") for name in masks) and "gain" not in masks
    return {**overrides, "correction": "additive"} if additive else overrides


def config_of(content: dict[str, Any], path: Path, flag: str) -> tuple[NetworkConfig, DatasetDescription] | None:
    """Return the network configuration and dataset description of a checkpoint; None for a bare state dict."""
    if "config" not in content:
        return None
    try:
        config = _read_config(content)
        config = replace(config, overrides=complete_overrides(config.overrides, content))
        description = DatasetDescription.from_json(content["description"], str(path))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{flag}: {path} does not describe its network and its dataset, expected a checkpoint of main_train"
        ) from error
    return config, description


def network_of(content: dict[str, Any]) -> NetworkConfig | None:
    """Return the network configuration of a checkpoint; None if it has none, or one of another program.

    It is that of a new network: defaults that have changed since the checkpoint was written are today's.
    """
    try:
        config = _read_config(content)
    except (KeyError, TypeError):
        return None
    return config if config.network in NETWORKS else None


def description_of(content: dict[str, Any]) -> DatasetDescription | None:
    """Return the dataset description of a checkpoint; None if it has none, or one of another program."""
    try:
        return DatasetDescription.from_json(content["description"], "checkpoint")
    except (KeyError, TypeError, InputError):
        return None


def _read_config(content: dict[str, Any]) -> NetworkConfig:
    """Read the network configuration of a checkpoint; KeyError or TypeError if it is not of main_train."""
    config = NetworkConfig(**{**content["config"], "roi_size": tuple(content["config"]["roi_size"])})
    json.dumps(dict(**config.overrides))  # a TypeError unless all keys are names and all values plain
    if not isinstance(config.network, str):
        raise TypeError(config.network)
    for number in (config.in_chans, config.out_chans, *config.roi_size):
        operator.index(number)  # a TypeError unless it is an integer
    return config


def split_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return the split of a checkpoint, as ``Split.to_plain`` makes it.

    Training states of earlier versions have only the ids of the training cases, and weights of earlier versions none.
    """
    split = content.get("split", {TRAINING: content["cases"]} if "cases" in content else {})
    return split if isinstance(split, dict) else {}

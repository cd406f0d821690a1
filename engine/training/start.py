"""Start from the weights of another run: --pretrained_weights, and the flags of the network that its file answers."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.datasets import PREPARATION, DatasetDescription
from engine.runtime.arguments import NETWORK_FLAGS, format_value, network_overrides, use_defaults
from engine.runtime.errors import InputError
from engine.runtime.files import ARGUMENTS
from engine.weights.checkpoints import NetworkConfig, description_of, load_checkpoint, network_of
from engine.weights.load_weights import LoadReport, load_weights
from networks import NETWORKS, is_built_for_roi_size
from networks.base import SegmentationNetwork

FLAG = "--pretrained_weights"
OF_THE_NETWORK = ("network", "roi_size", *NETWORK_FLAGS, "network_args")


@dataclass(frozen=True)
class StartWeights:
    """Weights to start from.

    Args:
        source: their file, for messages.
        content: result of ``load_checkpoint``.
        contradictions: flags that were given otherwise than the file has them, a phrase each.
    """

    source: str
    content: dict[str, Any]
    contradictions: tuple[str, ...]

    def load_into(self, network: SegmentationNetwork) -> LoadReport:
        """Load the weights, print what was loaded, and warn if other flags than the file's leave weights unloaded.

        Raises:
            InputError: the weights do not fit; the line names these flags.
        """
        differing = ", ".join(self.contradictions)
        try:
            report = load_weights(network, self.content, self.source)
        except InputError as error:
            if not differing:
                raise
            raise InputError(f"{error}; found {differing}") from error
        print(f"{FLAG}: {report}")
        expected = (*network.head_prefixes, *network.ignored_prefixes)
        left_out = [name for name in (*report.skipped, *report.missing) if not name.startswith(expected)]
        if left_out and differing:
            print(f"warning: {FLAG}: {len(left_out)} tensors were skipped or are missing: found {differing}")
        return report

    def compare_data(self, description: DatasetDescription) -> None:
        """Warn if volumes are prepared otherwise than those of the file's training, as far as it describes these."""
        trained = description_of(self.content)
        for difference in description.differences(trained, PREPARATION) if trained else ():
            print(f"warning: {FLAG}: found {difference} as in the training of the weights")


def read_start(flags: dict[str, Any]) -> StartWeights | None:
    """Read ``--pretrained_weights``, and complete the flags of the network, those that are None, from the file.

    Flags that were given are kept. With another ``--network`` than the file's, nothing is taken from it; from a file
    that does not say what network it is of, neither. A resumed run has the flags with which it was begun.

    Args:
        flags: flags of main_train and their values; completed in place.
    Returns: the weights; None for a run that does not start from any, or is resumed.
    Raises:
        InputError: the file cannot be read, or the flags of the run to resume cannot.
    """
    if not flags["pretrain"]:
        return None
    if flags["resume"]:
        complete_as_begun(flags, Path(flags["output"]))
        return None
    path = Path(flags["pretrained_weights"])
    content = load_checkpoint(path, FLAG)
    config = network_of(content)
    contradictions: tuple[str, ...] = ()
    if config is not None:
        contradictions = _find_contradictions(flags, config)
        before = {name: flags[name] for name in OF_THE_NETWORK}
        _take(flags, config)
        if taken := [f"--{name} {format_value(flags[name])}" for name in before if flags[name] != before[name]]:
            print(f"{FLAG}: taken from {path}: {' '.join(taken)}")
    use_defaults(flags)
    return StartWeights(f"{FLAG}: {path}", content, contradictions)


def complete_as_begun(flags: dict[str, Any], folder: Path) -> None:
    """Complete the flags of the network as in the run that was begun in a folder.

    Args:
        flags: flags of main_train and their values; completed in place.
        folder: output folder of the run.
    Raises:
        InputError: its flags cannot be read.
    """
    try:
        begun = json.loads((folder / ARGUMENTS).read_text(encoding="utf-8"))
        overrides = network_overrides(argparse.Namespace(**begun))
        config = NetworkConfig(begun["network"], 0, 0, tuple(begun["roi_size"]), overrides)
        NETWORKS[config.network]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"--resume: {folder / ARGUMENTS} cannot be read, expected the flags of the run") from error
    _take(flags, config)
    use_defaults(flags)


def _take(flags: dict[str, Any], config: NetworkConfig) -> None:
    """Set the flags of the network that are None to those of a configuration, if it is of the same network."""
    if flags["network"] not in (None, config.network):
        return
    overrides = {**_plain(config.overrides), **network_overrides(argparse.Namespace(**flags))}
    flags["network"] = config.network
    flags.update({name: overrides.pop(name, None) for name in NETWORK_FLAGS})
    flags["network_args"] = overrides or None
    if flags["roi_size"] is None and is_built_for_roi_size(config.network):
        flags["roi_size"] = list(config.roi_size)


def _plain(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a network's constructor as flags have them: lists, and the name kernel_size."""
    named = {"kernel_size" if name == "ks" else name: value for name, value in overrides.items()}
    return json.loads(json.dumps(named))


def _find_contradictions(flags: dict[str, Any], config: NetworkConfig) -> tuple[str, ...]:
    """Describe the flags that were given otherwise than a file has them."""
    if flags["network"] not in (None, config.network):
        return (f"--network {flags['network']}, the file is of {config.network}",)
    own = _plain(config.overrides)
    found = [
        f"{f'--{name}' if name in NETWORK_FLAGS else f'--network_args {name}'} {format_value(value)}, the file's is "
        f"{format_value(own.get(name))}"
        for name, value in network_overrides(argparse.Namespace(**flags)).items()
        if value != own.get(name)
    ]
    size = flags["roi_size"]
    if size not in (None, list(config.roi_size)) and is_built_for_roi_size(config.network):
        found.append(f"--roi_size {format_value(size)}, the file's is {format_value(config.roi_size)}")
    return tuple(found)

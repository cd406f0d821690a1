"""Settings that determine the predictions in a folder, the digests of their weights among them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.data.datasets import DatasetDescription
from engine.prediction.ensemble import Ensemble
from engine.runtime.arguments import AXES
from engine.runtime.errors import InputError
from engine.weights.checkpoints import unreadable


def digest_weights(paths: Sequence[str]) -> list[str]:
    """Compute the SHA-256 of each file of ``--trained_weights``, in the order given.

    Call it before the weights are read: if a file is replaced in between, the digest is that of the old file, and a
    later run with the new file does not mistake these predictions for its own.

    Raises:
        InputError: a file cannot be read; two have the same content, which would count twice in the mean.
    """
    digests: dict[str, str] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(Path(path), "--trained_weights", error) from error
        if digest in digests:
            raise InputError(f"--trained_weights: {path} is the same as {digests[digest]}, expected different weights")
        digests[digest] = path
    return list(digests)


def prediction_settings(
    digests: Sequence[str],
    network_flags: dict[str, Any],
    ensemble: Ensemble,
    keep_largest: Sequence[Sequence[str]],
    description: DatasetDescription,
) -> dict[str, Any]:
    """Collect the settings that determine a prediction, as plain values; equal settings differ only by rounding.

    What each network has of its own is a list if there are several, in their order. What is off is None.

    Args:
        digests: digest of each network's weights.
        network_flags: network, feat_size and kernel_size as flags, None for the checkpoint's value.
        ensemble: the networks with their windows.
        keep_largest: names of the classes of each structure of which only the largest component is kept.
        description: description of the dataset.
    """
    members, window = ensemble.members, ensemble.members[0].window  # all windows have the same overlap and mode
    return {
        "trained_weights": _one_or_all(digests),
        **network_flags,
        "roi_size": _one_or_all([list(member.window.roi_size) for member in members]),
        "overlap": window.overlap,
        "window": window.mode,
        "mirror": [AXES[axis] for axis in ensemble.mirrored] or None,
        "keep_largest": [list(names) for names in keep_largest] or None,
        "amp": _one_or_all([member.precision for member in members]),
        "dataset": description.to_json(),
    }


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else list(values)

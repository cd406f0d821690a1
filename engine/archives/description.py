"""The description of a prepared dataset, in the form of docs/data.md."""

from collections.abc import Mapping
from typing import Any

from engine.archives.kinds import Kind
from engine.data.datasets import DATASETS, DatasetDescription, LabelValues
from engine.runtime.errors import InputError

# Stand for the fields that have to be chosen for a dataset without published ones.
PLACEHOLDERS = {"spacing": [1.0, 1.0, 1.0], "intensity": {"zscore": True}}


def describe_dataset(kind: Kind) -> dict[str, Any]:
    """Make the description of a dataset from its completed kind: with spacing and intensities if the paper has them."""
    paper = DATASETS[kind.paper].to_json() if kind.paper else {}
    numbered = all(not ending or ending == f"_{place:04d}" for place, ending in enumerate(kind.channels.values()))
    own = {
        "name": (kind.name or kind.title) if kind.classes is not None else "",
        "modality": kind.modality,
        "labels": dict(kind.classes or {}),
        "regions": dict(kind.regions),
        "surface_tolerance": dict(kind.tolerances),
        "channels": list(kind.channels) if numbered else dict(kind.channels),
    }
    return {**paper, **{field: value for field, value in own.items() if value}}


def label_values(description: Mapping[str, Any], source: str) -> LabelValues:
    """Return the values of the classes, after a check of the whole description.

    Args:
        description: as ``describe_dataset`` makes it.
        source: what messages call it.
    Raises:
        InputError: one line per problem: names or labels that Rep3D does not accept.
    """
    try:
        return DatasetDescription.from_json(PLACEHOLDERS | dict(description), source).labels
    except InputError as error:
        raise InputError("\n".join(f"--source: {line}" for line in str(error).splitlines())) from error

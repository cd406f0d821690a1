"""Values of label maps: from those in files to class indices, and back.

Within the program a label map holds class indices, uint8: 0 is the background, and ``IGNORED_INDEX`` marks voxels of
unknown class, which take no part in the loss, as centres of crops, or in a score.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.datasets import LabelValues
from engine.runtime.wording import LISTED, count_of

IGNORED_INDEX = 255
UNKNOWN = -1  # in the table of class indices
ROUNDING = 1e-3  # files with a scale factor hold 0.9999847 for 1
FILE_TYPES = (np.uint8, np.int16, np.uint16, np.int32)  # of predictions; every reader of NIfTI knows them


def to_classes(voxels: NDArray[Any], labels: LabelValues) -> tuple[NDArray[np.uint8], list[str]]:
    """Convert the values of a file to class indices.

    A value within ``ROUNDING`` of a whole number counts as that number.

    Args:
        voxels: label map as in the file, any shape.
        labels: values of the classes.
    Returns: class indices, those of unknown values being arbitrary, and a line on these values, if there are any.
    """
    table, low = _tabulate(labels)
    classes, wrong = np.empty(voxels.shape, np.uint8), np.empty(voxels.shape, np.bool_)
    for place, part in enumerate(voxels):  # slice by slice: the numbers below take many bytes per voxel
        numbers = np.nan_to_num(part.astype(np.result_type(part, np.float32)), nan=low)
        nearest = np.rint(numbers)
        found = table[nearest.clip(low, low + len(table) - 1).astype(np.int32) - low]
        wrong[place] = (found == UNKNOWN) | (np.abs(numbers - nearest) > ROUNDING)
        classes[place] = found
    if not wrong.any():
        return classes, []
    return classes, [f"found label values {_list_values(voxels[wrong])}, expected {labels}"]


def to_file_values(classes: NDArray[np.uint8], labels: LabelValues) -> NDArray[Any]:
    """Convert class indices to the values of files, in the first of ``FILE_TYPES`` that holds those of all classes."""
    values = np.array([first for first, *_ in labels.classes])
    kind = next(kind for kind in FILE_TYPES if np.array_equal(values.astype(kind), values))
    return values.astype(kind)[classes]


@functools.cache
def _tabulate(labels: LabelValues) -> tuple[NDArray[np.int16], int]:
    """Make a table of class indices by value, with ``UNKNOWN`` at both ends, and return it with its lowest value."""
    index_of = {value: index for index, values in enumerate(labels.classes) for value in values}
    index_of |= dict.fromkeys(labels.ignored, IGNORED_INDEX)
    low = min(index_of) - 1
    table = np.full(max(index_of) - low + 2, UNKNOWN, np.int16)
    table[np.subtract(list(index_of), low)] = list(index_of.values())
    return table, low


def _list_values(voxels: NDArray[Any]) -> str:
    """List different values with the number of their voxels."""
    values, counts = np.unique(voxels, return_counts=True)
    listed = [
        f"{_format(value)} ({count_of(count, 'voxel')})"
        for value, count in zip(values[:LISTED], counts[:LISTED], strict=True)
    ]
    more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
    return f"{', '.join(listed)}{more}"


def _format(value: Any) -> str:
    """Format a number with the digits that distinguish it from its neighbours."""
    return np.format_float_positional(value, trim="-") if abs(value) < 1e16 else str(value)

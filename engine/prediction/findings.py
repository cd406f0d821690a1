"""State of single predictions: what is found in a folder of predictions for a case."""

import errno
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.data.cases import Case, image_files
from engine.data.datasets import LabelValues
from engine.data.labels import to_classes, to_file_values
from engine.data.nifti import open_volume, read_voxels
from engine.prediction.outputs import prediction_path
from engine.prediction.records import Record
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.files import combine_digests, digest_file, file_state

# Status of a prediction: valid; to be removed; unreadable; absent; written by somebody else; not known, because the
# image cannot be read at the moment.
FINISHED, OUTDATED, DAMAGED, MISSING = "finished", "outdated", "damaged", "missing"
FOREIGN, UNKNOWN = "foreign", "unknown"


class Finding(NamedTuple):
    """State of one prediction.

    Args:
        status: ``FINISHED``, ``OUTDATED``, ``DAMAGED``, ``MISSING``, ``FOREIGN`` or ``UNKNOWN``.
        source: description of the image; None if it cannot be read.
        digest: of the label map, if it is the program's own.
    """

    status: str
    source: dict[str, Any] | None
    digest: str | None


def examine_prediction(folder: Path, case: Case, record: Record | None, labels: LabelValues) -> Finding:
    """Describe a case's image, and determine the state of its prediction.

    Args:
        folder: folder of predictions.
        case: case with "id" and "image".
        record: what is known of the folder, with the images of predictions that have the same settings.
        labels: values of the classes.
    """
    known = record.sources.get(case["id"]) if record is not None else None
    source = describe_source(case, known)
    status, digest = examine_file(folder, case, record, labels)
    if source is None and status != FOREIGN:  # the image may become readable again, unchanged
        status = OUTDATED if known is None else UNKNOWN
    elif status == FINISHED and (known is None or source is None or known.get("digest") != source["digest"]):
        status = OUTDATED
    return Finding(status, source, digest)


def examine_file(folder: Path, case: Case, record: Record | None, labels: LabelValues) -> tuple[str, str | None]:
    """Find out whether a case has a label map that the program has written.

    A file is its own if its digest was noted when it was written. In folders of earlier versions, which noted none, a
    file is its own if it is one that the program might write for the image.

    Args: as ``examine_prediction``.
    Returns: ``FINISHED`` for its own, whatever the image is now; ``MISSING``; ``DAMAGED`` for a file that nobody can
        read; ``FOREIGN`` for any other; and the digest of its own.
    """
    path = prediction_path(folder, case["id"])
    try:
        digest = digest_file(str(path))
    except OSError as error:
        return MISSING if error.errno in (errno.ENOENT, errno.ENAMETOOLONG) else FOREIGN, None
    if record is not None and digest in (record.written or {}).get(path.name, []):
        return FINISHED, digest
    try:
        read_voxels(str(path))
    except InputError:
        return DAMAGED, None
    noted = record is None or record.written is not None or case["id"] not in record.sources
    return (FOREIGN, None) if noted or not is_valid(path, case, labels) else (FINISHED, digest)


def describe_source(case: Case, known: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Digest the content of a case's image files, with their paths, sizes and times; None if one cannot be read.

    Args:
        case: case with its files.
        known: result of an earlier call; the same files, if their sizes and times are the same, are not read again.
    """
    files = image_files(case)
    try:
        state = [file_state(path) for path in files]
        identity = {"paths": absolute_paths(case), "state": state}
        if known is not None and "digest" in known and identity.items() <= known.items():
            return known
        return {**identity, "digest": combine_digests(map(digest_file, files))}
    except OSError:
        return None


def is_valid(path: Path, case: Case, labels: LabelValues) -> bool:
    """Check that a label map is on its image's grid, and holds only known classes in the type that is written."""
    try:
        prediction, image = open_volume(str(path)), open_volume(image_files(case)[0])
        voxels = read_voxels(str(path))
    except InputError:  # whatever is wrong with either file, predicting the case will report or repair it
        return False
    same_grid = prediction.shape == image.shape[:3] and np.array_equal(prediction.affine, image.affine)
    expected = to_file_values(np.zeros(1, np.uint8), labels).dtype
    return bool(same_grid and voxels.dtype == expected and not to_classes(voxels, labels)[1])


def read_prediction(folder: Path, labels: LabelValues, case: Case) -> dict[str, Any]:
    """Read the label map of a finished case, and return the case with its class indices as "pred"."""
    path = str(prediction_path(folder, case["id"]))
    classes, problems = to_classes(read_voxels(path), labels)
    raise_problems([f"{path}: {problem}" for problem in problems])
    return {**case, "pred": classes}


def absolute_paths(case: Case) -> list[str]:
    """List the absolute paths of a case's image files."""
    return list(map(os.path.abspath, image_files(case)))

"""State of the folder of predictions: the cases that are finished in it, and their settings."""

import errno
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.data.cases import Case, image_files
from engine.data.datasets import DatasetDescription
from engine.data.nifti import open_volume, read_voxels
from engine.runtime.arguments import format_value
from engine.runtime.distributed import barrier, gather, process_rank, shard
from engine.runtime.errors import InputError
from engine.runtime.files import combine_digests, digest_file, file_state, write_text

FORMER_AMP = {"bfloat16": "bf16", "float16": "fp16"}  # in folders of earlier versions
SETTINGS, SOURCES = "settings.json", "sources"
ENDING = "_seg.nii.gz"
LONGEST_SHOWN = 24  # characters of a setting's value in a message
# Status of a prediction: valid; to be removed; not known, because the image cannot be read at the moment.
FINISHED, OUTDATED, UNKNOWN = "finished", "outdated", "unknown"


def prediction_path(folder: Path, case: str) -> Path:
    """Return the path of a case's label map."""
    return folder / f"{case}{ENDING}"


def picture_path(folder: Path, case: str) -> Path:
    """Return the path of a case's picture."""
    return folder / f"{case}.png"


def digest_weights(path: str) -> str:
    """Compute the SHA-256 of the file of ``--trained_weights``.

    Call it before the weights are read: if the file is replaced in between, the digest is that of the old file, and a
    later run with the new file does not mistake these predictions for its own.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"--trained_weights: {path} cannot be read ({error.strerror}), expected a checkpoint"
        ) from error


def prediction_settings(
    digest: str,
    network_flags: dict[str, Any],
    roi_size: Sequence[int],
    overlap: float,
    amp: str,
    description: DatasetDescription,
) -> dict[str, Any]:
    """Collect the settings that determine a prediction, as plain values; equal settings differ only by rounding.

    Args:
        digest: digest of the weights.
        network_flags: network, feat_size and kernel_size as flags, None for the checkpoint's value.
        roi_size: (D, H, W) of the window, voxels.
        overlap: overlap of sliding windows.
        amp: autocast precision, as ``--amp`` names it.
        description: description of the dataset.
    """
    return {
        "trained_weights": digest,
        **network_flags,
        "roi_size": list(roi_size),
        "overlap": overlap,
        "amp": amp,
        "dataset": description.to_json(),
    }


def divide_cases(
    cases: Sequence[Case], folder: Path, settings: dict[str, Any], overwrite: bool
) -> tuple[list[Case], list[Case]]:
    """Divide cases into those that are finished in a folder and those that are not, equally in every process.

    Afterwards the folder holds no prediction with other settings or of another image, even if the run is killed at any
    moment: predictions of the same settings and image stay until a rename replaces them, all others are removed before
    the new settings are written.

    Args:
        cases: cases of all processes.
        folder: folder of predictions.
        settings: result of ``prediction_settings``.
        overwrite: whether to predict all cases again.
    Raises:
        InputError: predictions that would stay were made with other settings.
    """
    known = _read_settings(folder / SETTINGS)
    check_settings(folder, settings, known, [case["id"] for case in cases] if overwrite else [])
    sources = known[SOURCES] if known is not None and not differing_settings(settings, known) else {}
    classes = len(settings["dataset"]["labels"])
    part = tqdm(shard(cases), "checking cases", leave=False, disable=process_rank() != 0)
    found = gather([examine_prediction(folder, case, sources.get(case["id"]), classes) for case in part])
    finished: list[Case] = []
    missing: list[Case] = []
    removed: list[Path] = []
    for case, (source, status) in zip(cases, found, strict=True):
        if source is not None:
            sources[case["id"]] = source
        if status == FINISHED and not overwrite:
            finished.append(case)
        else:
            missing.append(case)
            removed += [prediction_path(folder, case["id"])] if status == OUTDATED else []
            removed += [picture_path(folder, case["id"])] if status != UNKNOWN else []
    if process_rank() == 0:
        remove_files([*removed, folder / "dice.csv", folder / "dice.json"] if missing else [])
        write_text(folder / SETTINGS, json.dumps({**settings, SOURCES: sources}, indent=2) + "\n")
    barrier()
    return finished, missing


def check_settings(
    folder: Path, settings: dict[str, Any], known: dict[str, Any] | None, replaced: Collection[str]
) -> None:
    """Make sure that the predictions that stay in a folder were made with the same settings.

    Args:
        folder: folder of predictions.
        settings: result of ``prediction_settings``.
        known: settings of the predictions in the folder; None if they cannot be read.
        replaced: ids of the cases to be predicted again.
    Raises:
        InputError: the settings differ; it names the differences.
    """
    present = {path.name.removesuffix(ENDING) for path in folder.glob(f"[!.]*{ENDING}")}
    if not present - set(replaced):
        return
    expected = "another folder" if replaced else "--overwrite or another folder"
    if known is None:
        raise InputError(f"--output: {folder} holds predictions but no readable {SETTINGS}, expected {expected}")
    if differing := differing_settings(settings, known):
        found = ", ".join(f"{name} {_shorten(known.get(name))} (now {_shorten(settings[name])})" for name in differing)
        raise InputError(f"--output: {folder} holds predictions with {found}, expected {expected}")


def differing_settings(settings: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """List the names of the settings that differ from the known ones."""
    return [name for name, value in settings.items() if known.get(name) != value]


def examine_prediction(folder: Path, case: Case, known: Any, classes: int) -> tuple[dict[str, Any] | None, str]:
    """Describe a case's image, and determine the status of its prediction: ``FINISHED``, ``OUTDATED`` or ``UNKNOWN``.

    Args:
        folder: folder of predictions.
        case: case with "id" and "image".
        known: description of the image that was predicted with the same settings; None if there was none.
        classes: number of classes.
    """
    source = describe_source(case, known)
    if source is None:  # the image may become readable again, unchanged
        return None, OUTDATED if known is None else UNKNOWN
    same = isinstance(known, dict) and known.get("digest") == source["digest"]
    return source, FINISHED if same and is_finished(folder, case, classes) else OUTDATED


def describe_source(case: Case, known: Any = None) -> dict[str, Any] | None:
    """Digest the content of a case's image files, with their sizes and times; None if one cannot be read.

    Args:
        case: case with its files.
        known: result of an earlier call; files of the same sizes and times are not read again.
    """
    files = image_files(case)
    try:
        state = [file_state(path) for path in files]
        if isinstance(known, dict) and known.get("state") == state and "digest" in known:
            return known
        return {"state": state, "digest": combine_digests(map(digest_file, files))}
    except OSError:
        return None


def is_finished(folder: Path, case: Case, classes: int) -> bool:
    """Check that a case's label map exists, is complete, has only known classes, and is on its image's grid."""
    path = prediction_path(folder, case["id"])
    try:
        prediction, image = open_volume(str(path)), open_volume(image_files(case)[0])
        labels = read_voxels(str(path))
    except Exception:  # whatever is wrong with either file, predicting the case will report or repair it
        return False
    same_grid = prediction.shape == image.shape[:3] and np.array_equal(prediction.affine, image.affine)
    return bool(same_grid and labels.dtype == np.uint8 and labels.max() < classes)


def read_prediction(folder: Path, case: Case) -> dict[str, Any]:
    """Read the label map of a finished case, and return the case with it as "pred"."""
    return {**case, "pred": read_voxels(str(prediction_path(folder, case["id"])))}


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files of an output folder, if they exist."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # with that error no such file exists
                raise InputError(f"--output: {path} cannot be removed ({error.strerror}), expected a file") from error


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get(SOURCES), dict):
        return None
    return {**values, "amp": FORMER_AMP.get(str(values.get("amp")), values.get("amp"))}


def _shorten(value: Any) -> str:
    text = format_value(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."

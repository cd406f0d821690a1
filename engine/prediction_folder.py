"""The folder of predictions: which cases are finished there, and with what settings."""

import argparse
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from engine.case_check import read_voxels
from engine.description import DatasetDescription
from engine.distributed import collect, deal, process_rank, wait_for_all
from engine.errors import InputError
from engine.files import write_text
from engine.headers import image_files
from engine.nifti import first_file, load_nifti, read_labels

SETTINGS, SOURCES = "settings.json", "sources"
ENDING = "_seg.nii.gz"
LONGEST_SHOWN = 24  # characters of a setting's value in a message

Case = dict[str, Any]


def prediction_path(folder: Path, case: str) -> Path:
    """Where the label map of a case lies."""
    return folder / f"{case}{ENDING}"


def picture_path(folder: Path, case: str) -> Path:
    """Where the picture of a case lies."""
    return folder / f"{case}.png"


def digest_weights(path: str) -> str:
    """SHA-256 of the file of ``--trained_weights``.

    To be taken before the weights are read: of a file that is replaced in between it is then the old one's digest, and
    a later run with the new file does not take these predictions for its own.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"--trained_weights: {path} cannot be read ({error.strerror}), expected a checkpoint"
        ) from error


def prediction_settings(
    args: argparse.Namespace,
    digest: str,
    roi_size: Sequence[int],
    precision: torch.dtype | None,
    description: DatasetDescription,
) -> dict[str, Any]:
    """What decides a prediction, as plain values: runs that agree in it predict the same but for rounding.

    Args:
        args: flags; those of the network are None where the checkpoint decides.
        digest: of the weights.
        roi_size: (D, H, W) of the window, voxels.
        precision: of autocast, None without it.
        description: of the dataset.
    """
    return {
        "trained_weights": digest,
        "network": args.network,
        "feat_size": args.feat_size,
        "kernel_size": args.kernel_size,
        "roi_size": list(roi_size),
        "overlap": args.overlap,
        "amp": "off" if precision is None else str(precision).removeprefix("torch."),
        "dataset": description.to_json(),
    }


def divide_cases(
    cases: Sequence[Case], folder: Path, settings: dict[str, Any], overwrite: bool
) -> tuple[list[Case], list[Case]]:
    """The cases that are finished in a folder and those that are not; the same in every process.

    Afterwards the folder holds no prediction that other settings made, whenever the run is killed: what stays was made
    with the same ones, and what does not is gone before the new settings are written.

    Args:
        cases: of all the processes.
        folder: of predictions.
        settings: of ``prediction_settings``.
        overwrite: whether all the cases are to be predicted again.
    Raises:
        InputError: predictions that would stay were made with other settings.
    """
    known = _read_settings(folder / SETTINGS)
    check_settings(folder, settings, known, [case["id"] for case in cases] if overwrite else [])
    sources = known.get(SOURCES, {}) if known else {}
    classes = len(settings["dataset"]["labels"])
    part = tqdm(deal(cases), "checking cases", leave=False, disable=process_rank() != 0)
    found = collect(  # all wait for all
        [
            not overwrite and sources.get(case["id"]) == describe_source(case) and is_finished(folder, case, classes)
            for case in part
        ]
    )
    finished = [case for case, there in zip(cases, found, strict=True) if there]
    missing = [case for case, there in zip(cases, found, strict=True) if not there]
    if process_rank() == 0:
        remove_predictions(folder, [case["id"] for case in missing])
        sources |= {case["id"]: describe_source(case) for case in missing}
        write_text(folder / SETTINGS, json.dumps({**settings, SOURCES: sources}, indent=2) + "\n")
    wait_for_all()
    return finished, missing


def check_settings(
    folder: Path, settings: dict[str, Any], known: dict[str, Any] | None, replaced: Collection[str]
) -> None:
    """Make sure that predictions which stay in a folder were made with the same settings.

    Args:
        folder: of predictions.
        settings: of ``prediction_settings``.
        known: those of what is there; None where they cannot be told.
        replaced: ids of the cases whose predictions do not stay.
    Raises:
        InputError: naming what differs.
    """
    there = {path.name.removesuffix(ENDING) for path in folder.glob(f"[!.]*{ENDING}")}
    if not there - set(replaced):
        return
    expected = "another folder" if replaced else "--overwrite or another folder"
    if known is None:
        raise InputError(f"--output: {folder} holds predictions but no readable {SETTINGS}, expected {expected}")
    differing = [name for name, value in settings.items() if known.get(name) != value]
    if differing:
        found = ", ".join(f"{name} {_shorten(known.get(name))} (now {_shorten(settings[name])})" for name in differing)
        raise InputError(f"--output: {folder} holds predictions with {found}, expected {expected}")


def describe_source(case: Case) -> list[list[int]] | None:
    """Size and time of a case's image files, by which a changed or another image is told; None where one is gone."""
    try:
        states = [os.stat(path) for path in image_files(case)]
    except OSError:
        return None
    return [[state.st_size, state.st_mtime_ns] for state in states]


def is_finished(folder: Path, case: Case, classes: int) -> bool:
    """Whether a case's label map is there, whole, of its classes, and on its image's grid."""
    path = prediction_path(folder, case["id"])
    if not path.exists():
        return False
    try:
        image, prediction = load_nifti(first_file(case["image"])), load_nifti(str(path))
        labels = read_voxels(str(path))
    except Exception:  # whatever is the matter with either, predicting the case will show or mend it
        return False
    same_grid = prediction.shape == image.shape[:3] and np.array_equal(prediction.affine, image.affine)
    return bool(same_grid and labels.dtype == np.uint8 and labels.max() < classes)


def read_prediction(folder: Path, case: Case) -> Case:
    """A finished case with its label map as "pred"."""
    return {**case, "pred": read_labels(str(prediction_path(folder, case["id"])))}


def remove_predictions(folder: Path, cases: Iterable[str]) -> None:
    """Remove the label maps and pictures of cases that are to be predicted, and the Dice of what was there."""
    paths = [path(folder, case) for case in cases for path in (prediction_path, picture_path)]
    for path in [*paths, folder / "dice.csv", folder / "dice.json"] if paths else []:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"--output: {path} cannot be removed ({error.strerror}), expected a file") from error


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get(SOURCES), dict) else None


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."

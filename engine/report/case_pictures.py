"""The best and the worst cases of a folder of predictions, as pictures."""

from pathlib import Path
from typing import NamedTuple

from engine.data.case_checks import read_checked_label
from engine.data.cases import Case, find_all_cases, find_cases, image_files, matching_label_folder
from engine.data.datasets import DatasetDescription
from engine.data.folders import SOURCES
from engine.data.nifti import open_volume
from engine.evaluation.pictures import preview
from engine.prediction.findings import read_prediction
from engine.report.figures import VOLUMES, drawing, encode_webp
from engine.report.run_folder import Predictions
from engine.report.scores import DiceScores
from engine.runtime.errors import InputError, raise_problems

DRAWN_CASES = 3  # of the worst, and of the best


class Extremes(NamedTuple):
    """Indices of the worst cases, from the worst, and of the best ones, from the best."""

    worst: list[int]
    best: list[int]


def choose_extremes(dice: DiceScores) -> Extremes:
    """Choose the cases with the lowest and the highest mean Dice; no case is both."""
    ranked = dice.ranked()
    worst = ranked[:DRAWN_CASES]
    return Extremes(worst, ranked[len(worst) :][: -DRAWN_CASES - 1 : -1])


def find_images(
    predictions: Predictions, root: Path | None, former_root: Path | None, description: DatasetDescription
) -> dict[str, Case]:
    """Find the images of predictions, with labels if there are any, by id.

    Args:
        predictions: the predictions; their settings name the images.
        root: dataset folder to look in instead, or None.
        former_root: dataset folder of the training, if known, for predictions whose settings name no images.
        description: description of the dataset.
    Raises:
        InputError: ``root`` is no folder.
    """
    if root is not None and not root.is_dir():
        raise InputError(f"--root: {root} not found, expected a dataset folder")
    sources = predictions.settings.get(SOURCES, {}).values()
    folders = {Path(str(source["paths"][0])).parent for source in sources if _has_paths(source)}
    if root is not None or not folders:
        place = root or former_root
        found = [find_all_cases(place, description)] if place is not None and place.is_dir() else []
    else:
        layout = len(description.channels), description.endings
        pairs = [(folder, matching_label_folder(folder)) for folder in sorted(folders)]
        found = [find_cases(images, labels, *layout, every_label=False) for images, labels in pairs]
    return {case["id"]: case for cases, *_ in found for case in cases}


def _has_paths(source: object) -> bool:
    """Check whether the settings of a prediction name its image; those of earlier versions do not."""
    return isinstance(source, dict) and isinstance(source.get("paths"), list) and bool(source["paths"])


def draw_case(case: Case, predictions: Predictions, description: DatasetDescription) -> str:
    """Draw three planes of a case with the contours of prediction and label, and return a data URI.

    Raises:
        InputError: a file cannot be read, or the files have different grids.
    """
    predicted = read_prediction(predictions.folder, description.labels, case)["pred"]
    image = image_files(case)[0]
    shape = open_volume(image).shape[:3]
    if predicted.shape != shape:
        raise_problems([f"{image}: found the shape {shape}, expected {predicted.shape} as of the prediction"])
    label = read_checked_label(case, description)[0] if "label" in case else None
    with drawing(VOLUMES):
        return encode_webp(preview(image, predicted, label, description, case["id"]))

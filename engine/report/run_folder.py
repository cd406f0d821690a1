"""What a report needs to know of a run and of its predictions: the content of their folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.datasets import DatasetDescription
from engine.data.folders import SETTINGS, read_settings
from engine.prediction.settings import digest_weights
from engine.report.curves import Logs, read_logs
from engine.report.scores import DICE_CSV, SCORES_CSV, DiceScores, MeasuredScores, read_dice, read_scores
from engine.runtime.errors import InputError
from engine.runtime.files import ARGUMENTS, BEST, LAST, VERSIONS
from engine.training.state import Progress
from engine.weights.checkpoints import load_checkpoint
from engine.weights.load_network import TrainedNetwork, load_trained

LOGS = "tensorboard"


@dataclass(frozen=True)
class Run:
    """Content of the output folder of main_train.py; what the folder lacks is None or empty.

    Args:
        folder: the folder.
        args: flags of the run.
        versions: of the software that it was last started with.
        logs: curves and pictures.
        best: network with the best weights.
        last: the last checkpoint without its tensors.
        progress: progress at the last checkpoint.
        dice: scores of the latest validation.
    """

    folder: Path
    args: dict[str, Any]
    versions: dict[str, Any]
    logs: Logs
    best: TrainedNetwork | None
    last: dict[str, Any]
    progress: Progress | None
    dice: DiceScores | None


@dataclass(frozen=True)
class Predictions:
    """Content of a folder of predictions; what the folder lacks is None or empty.

    Args:
        folder: the folder.
        settings: settings and sources of its predictions, by test_seg.py.
        description: description of the dataset, as the predictions were made with.
        dice: Dice of each case, by test_seg.py.
        scores: measures of each case and structure.
    """

    folder: Path
    settings: dict[str, Any]
    description: DatasetDescription | None
    dice: DiceScores | None
    scores: MeasuredScores | None


def read_run(folder: Path) -> Run:
    """Read the folder of a run.

    Raises:
        InputError: it is none, or one of its files cannot be read.
    """
    parts = [folder / name for name in (ARGUMENTS, BEST, LAST, LOGS)]
    if not any(part.exists() for part in parts):
        names = ", ".join(part.name for part in parts[:-1])
        raise InputError(f"RUN: found none of {names} and {LOGS} in {folder}, expected a folder of main_train.py")
    last = load_checkpoint(folder / LAST, "RUN") if (folder / LAST).exists() else {}
    return Run(
        folder,
        read_object(folder / ARGUMENTS),
        read_object(folder / VERSIONS),
        read_logs(folder / LOGS),
        load_trained(folder / BEST, "RUN") if (folder / BEST).exists() else None,
        {name: value for name, value in last.items() if name not in ("model", "optimizer")},
        read_progress(last, folder / LAST) if last else None,
        read_dice(folder / DICE_CSV) if (folder / DICE_CSV).exists() else None,
    )


def read_predictions(folder: Path) -> Predictions:
    """Read a folder of predictions.

    Raises:
        InputError: it holds neither settings nor scores, or one of its files cannot be read.
    """
    parts = [folder / name for name in (SETTINGS, DICE_CSV, SCORES_CSV)]
    if not any(part.exists() for part in parts):
        expected = "expected a folder of test_seg.py or tools/evaluate.py"
        raise InputError(f"PREDICTIONS: found none of {', '.join(part.name for part in parts)} in {folder}, {expected}")
    settings = read_settings(folder) or {}
    source = str(folder / SETTINGS)
    return Predictions(
        folder,
        settings,
        DatasetDescription.from_json(settings["dataset"], source) if "dataset" in settings else None,
        read_dice(folder / DICE_CSV) if (folder / DICE_CSV).exists() else None,
        read_scores(folder / SCORES_CSV) if (folder / SCORES_CSV).exists() else None,
    )


def choose_description(run: Run, predictions: Predictions | None) -> DatasetDescription | None:
    """Return the description that the predictions were made with, or else that of the weights; None without both."""
    if predictions is not None and predictions.description is not None:
        return predictions.description
    return run.best.description if run.best is not None else None


def read_progress(checkpoint: dict[str, Any], path: Path) -> Progress:
    """Read the progress of a run from its last checkpoint.

    Raises:
        InputError: it holds none, or one of another version.
    """
    try:
        progress = Progress(**checkpoint["progress"])
        progress.check()
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"RUN: {path} holds no training state of this version, expected one") from error
    return progress


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if there is no such file.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected what main_train.py writes") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}, expected an object with the flags of a run")
    return values


def name_weights(run: Run, predictions: Predictions) -> list[str]:
    """Name the weights of the run that predictions were made with; "" in place of weights that the run has not."""
    used = predictions.settings.get("trained_weights", [])
    digests = {digest_weights([str(path)])[0]: path.name for path in sorted(run.folder.glob("*.pth"))}
    return [digests.get(digest, "") for digest in (used if isinstance(used, list) else [used])]

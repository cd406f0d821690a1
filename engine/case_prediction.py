"""Case by case from loading to the Dice table: what fails is that case's failure, and the run goes on."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from monai.transforms import Compose
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.case_check import read_checked_label
from engine.description import DatasetDescription
from engine.distributed import process_rank
from engine.errors import CasesFailed, DiskError, InputError, is_out_of_memory, raise_problems
from engine.headers import Case, check_headers
from engine.metrics import DiceTable, dice_by_class
from engine.nifti import first_file
from engine.pictures import preview, save_png
from engine.prediction import Window, case_loader, overlap_steps, predict_logits
from engine.prediction_folder import picture_path, prediction_path, read_prediction
from engine.process import return_freed_memory
from load_datasets_transforms import data_transforms, infer_post_transforms
from networks.base import SegmentationNetwork

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """What takes the place of a case that failed on its way.

    Args:
        case: its id.
        reason: one line.
    """

    case: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        case: its id.
        dice: of each foreground class, None where it could not be scored or has no label.
        failures: a line for each step that failed.
    """

    case: str
    dice: NDArray[np.float64] | None
    failures: tuple[str, ...] = ()


class CasesToPredict(Dataset[Case | Failure]):
    """Preprocessed cases; in the place of one that cannot be loaded stands its failure.

    An exception would not do: what a loading process raises ends the loading.

    Args:
        cases: with "id" and "image".
        transforms: the pipeline.
        description: what the headers have to agree with.
    """

    def __init__(self, cases: Sequence[Case], transforms: Compose, description: DatasetDescription) -> None:
        self.cases = cases
        self.transforms = transforms
        self.description = description

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Case | Failure:
        return attempt(self._load, self.cases[index])

    def _load(self, case: Case) -> Case:
        raise_problems(check_headers({"image": case["image"]}, self.description))
        return self.transforms(case)


def predict_cases(
    cases: Sequence[Case], args: argparse.Namespace, network: SegmentationNetwork, device: torch.device, window: Window
) -> list[Outcome]:
    """Predict, write, score and draw cases, each whatever becomes of the others.

    Args:
        cases: of this process, with "id", "image", its path again as "source", and "label" where there is one.
        args: of test_seg.py, with the dataset's description as ``dataset``.
        network: in evaluation mode, on ``device``.
        device: the network's.
        window: how it slides.
    Raises:
        DiskError: the output cannot be written.
    """
    (transforms,) = data_transforms(args)
    invert, save = infer_post_transforms(args, transforms)
    outcomes: list[Outcome] = []

    def infer(case: Case) -> Case:
        # Inverted here, not beside the next case's network: one case's logits at a time are gigabytes enough.
        return invert({**case, "pred": predict_logits(network, case["image"].to(device), window)})

    def finish(case: Case | Failure) -> None:
        # A folder that cannot be written to is no fault of the case, and would fail all the others.
        saved = attempt(save, case, fatal=(DiskError,))
        outcomes.append(review(saved, Path(args.output), args.dataset, args.preview))

    loader = case_loader(CasesToPredict(cases, transforms, args.dataset), args.num_workers)
    bar = tqdm(loader, "predicting", disable=process_rank() != 0)
    overlap_steps(bar, lambda case: attempt(infer, case), finish)
    return outcomes


def review_finished(
    cases: Sequence[Case], folder: Path, description: DatasetDescription, with_pictures: bool
) -> list[Outcome]:
    """Score and draw cases whose predictions are in a folder already.

    Args:
        cases: of this process.
        folder: of predictions.
        description: of the dataset.
        with_pictures: whether to draw those that have no picture there.
    """
    bar = tqdm(cases, "scoring", leave=False, disable=process_rank() != 0 or not cases)
    read = partial(read_prediction, folder)
    return [review(attempt(read, case), folder, description, with_pictures) for case in bar]


def attempt(
    step: Callable[[Case], Result], case: Case | Failure, fatal: tuple[type[Exception], ...] = ()
) -> Result | Failure:
    """Do a step with a case; where it fails, or an earlier one has, return the failure.

    Args:
        step: of one case.
        case: with "id"; or its failure, which is handed on.
        fatal: exceptions that are no fault of the case, and are raised.
    """
    if isinstance(case, Failure):
        return case
    try:
        return step(case)
    except fatal:
        raise
    except Exception as error:  # of hundreds of cases none's surprise may end the run
        failure = Failure(case["id"], describe_error(case["id"], error))
    # What the step held is free only now that its exception is forgotten.
    return_freed_memory()
    torch.cuda.empty_cache()
    return failure


def describe_error(case: str, error: BaseException) -> str:
    """One line about a case that failed; an ``InputError`` says itself which file it means."""
    out_of_memory = is_out_of_memory(error)
    while error.__cause__ is not None and not isinstance(error, InputError):  # MONAI wraps its transforms' errors
        error = error.__cause__
    lines = str(error).splitlines() or [""]
    if isinstance(error, InputError):
        return "; ".join(lines)
    reason = f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
    if out_of_memory:
        return f"{case}: out of memory ({reason}), expected lower --sw_batch_size or --num_workers"
    return f"{case}: {reason}"


def review(case: Case | Failure, folder: Path, description: DatasetDescription, with_picture: bool) -> Outcome:
    """Score a prediction where the case has a label, and draw it.

    Args:
        case: with the label map "pred" and the path "source" of its image.
        folder: for the picture.
        description: of the dataset.
        with_picture: whether to draw it, unless its picture is there.
    Raises:
        DiskError: the picture cannot be written.
    """
    if isinstance(case, Failure):
        return Outcome(case.case, None, (case.reason,))
    scored = attempt(lambda case: score(case, description), case)
    failures = [scored.reason] if isinstance(scored, Failure) else []
    label, dice = (None, None) if isinstance(scored, Failure) else scored
    if with_picture and not os.path.exists(picture_path(folder, case["id"])):
        drawn = attempt(lambda case: draw(case, label, folder, description), case, fatal=(DiskError,))
        failures += [drawn.reason] if isinstance(drawn, Failure) else []
    return Outcome(case["id"], dice, tuple(failures))


def score(
    case: Case, description: DatasetDescription
) -> tuple[NDArray[np.uint8], NDArray[np.float64]] | tuple[None, None]:
    """The label map of a case and the Dice of each foreground class; None and None where it has no label.

    Raises:
        InputError: a label that is unreadable, on another grid, or with values that are no class.
    """
    if "label" not in case:
        return None, None
    label = read_checked_label({"image": case["source"], "label": case["label"]}, description)
    return label, dice_by_class(case["pred"], label, len(description.classes))


def draw(case: Case, label: NDArray[np.uint8] | None, folder: Path, description: DatasetDescription) -> None:
    """Write the picture of a case."""
    figure = preview(first_file(case["source"]), case["pred"], label, description, case["id"])
    save_png(figure, picture_path(folder, case["id"]))


def report(outcomes: Sequence[Outcome], folder: Path, description: DatasetDescription) -> None:
    """Print and write the Dice of all the cases that have one, tell how many predictions there are, and what failed.

    Args:
        outcomes: of all the cases, in the order of the table; the same in every process.
        folder: of predictions.
        description: of the dataset.
    Raises:
        CasesFailed: a line for everything that failed.
    """
    table = DiceTable(description.classes[1:])
    for outcome in outcomes:
        if outcome.dice is not None:
            table.add(outcome.case, outcome.dice)
    if process_rank() == 0 and table.cases:
        table.write(folder)
        print(table.as_text())
    there = sum(os.path.exists(prediction_path(folder, outcome.case)) for outcome in outcomes)
    print(f"{there} predictions in {folder}")
    if failures := [line for outcome in outcomes for line in outcome.failures]:
        raise CasesFailed("\n".join(failures))

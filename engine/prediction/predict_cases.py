"""Prediction case by case, from loading to the Dice table; a case that fails does not stop the run."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from monai.transforms import Compose, Transform
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.data.case_checks import read_checked_label
from engine.data.cases import Case, image_files
from engine.data.datasets import DatasetDescription
from engine.data.header_checks import read_image_headers, review_headers
from engine.data.intensity_checks import measure_channels
from engine.data.loading import case_loader
from engine.evaluation.metrics import DiceTable, dice_by_structure
from engine.evaluation.pictures import encode_png, preview
from engine.prediction.ensemble import Ensemble
from engine.prediction.estimate import estimate_work
from engine.prediction.findings import read_prediction
from engine.prediction.outputs import picture_path, prediction_path, write_output
from engine.prediction.records import record_written
from engine.runtime.distributed import process_rank
from engine.runtime.errors import CasesFailed, DiskError, describe_error, raise_problems
from engine.runtime.memory import return_freed_memory
from engine.runtime.warning_lines import Warnings, merge_warnings, print_warnings
from engine.runtime.wording import count_of, list_some

TO_LOWER = "--sw_batch_size or --num_workers"  # if memory runs out
Sample = dict[str, Any]  # a case in progress: "id", "source" and "label" as in ``Case``, "image" and "pred" as volumes
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """Placeholder for a case that failed.

    Args:
        case: id of the case.
        reason: cause, in one line.
    """

    case: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """Outcome of one case.

    Args:
        case: id of the case.
        dice: Dice of each structure; None if the case could not be scored or has no label.
        failures: one line for each step that failed.
        warnings: lines by kind.
    """

    case: str
    dice: NDArray[np.float64] | None
    failures: tuple[str, ...] = ()
    warnings: Warnings = field(default_factory=dict)


class CasesToPredict(Dataset[Sample | Failure]):
    """Dataset of preprocessed cases; a case that cannot be loaded is replaced by its failure.

    It raises no exception, since one in a loading process would end all loading.

    Args:
        cases: cases to load.
        transforms: preprocessing pipeline.
        description: channels and spacing that the headers must match.
    """

    def __init__(self, cases: Sequence[Case], transforms: Compose, description: DatasetDescription) -> None:
        self.cases = cases
        self.transforms = transforms
        self.description = description

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Sample | Failure:
        return attempt(self._load, self.cases[index])

    def _load(self, case: Any) -> Sample:
        headers = read_image_headers(case, self.description)
        problems, warnings = review_headers(headers, self.description.fix_affine)
        raise_problems(problems)
        loaded = self.transforms(case, end=1)  # the intensities are those of the file
        lines = measure_channels(loaded["image"].numpy(), self.description).warnings
        named = {kind: [f"case {case['id']}: {line}" for line in found] for kind, found in lines.items()}
        return {**self.transforms(loaded, start=1), "warnings": merge_warnings([warnings, named])}


@dataclass(frozen=True)
class Review:
    """Review of predictions: score the cases that have a label, and draw pictures.

    Args:
        folder: folder of predictions and pictures.
        description: description of the dataset.
        with_pictures: whether to draw the cases that have no picture yet.
    """

    folder: Path
    description: DatasetDescription
    with_pictures: bool

    def __call__(self, sample: Sample | Failure) -> Outcome:
        """Determine the outcome of a predicted case with the label map "pred", or of a case that failed.

        Raises:
            DiskError: a picture cannot be written.
        """
        if isinstance(sample, Failure):
            return Outcome(sample.case, None, (sample.reason,))
        scored = attempt(self._score, sample)
        failures = [scored.reason] if isinstance(scored, Failure) else []
        label, dice, warnings = (None, None, {}) if isinstance(scored, Failure) else scored
        if self.with_pictures and not os.path.exists(picture_path(self.folder, sample["id"])):
            drawn = attempt(partial(self._draw, label), sample, fatal=(DiskError,))
            failures += [drawn.reason] if isinstance(drawn, Failure) else []
        return Outcome(sample["id"], dice, tuple(failures), merge_warnings([sample.get("warnings", {}), warnings]))

    def _score(self, sample: Any) -> tuple[NDArray[np.uint8] | None, NDArray[np.float64] | None, Warnings]:
        """Return a case's label map, the Dice of each structure, and warnings; nothing for a case without a label."""
        if "label" not in sample:
            return None, None, {}
        label, warnings = read_checked_label(sample, self.description)
        return label, dice_by_structure(sample["pred"], label, list(self.description.structures.values())), warnings

    def _draw(self, label: NDArray[np.uint8] | None, sample: Any) -> None:
        figure = preview(image_files(sample)[0], sample["pred"], label, self.description, sample["id"])
        write_output(picture_path(self.folder, sample["id"]), encode_png(figure))


def predict_cases(
    cases: Sequence[Case],
    transforms: Compose,
    post_transforms: tuple[Transform, Transform],
    ensemble: Ensemble,
    review: Review,
    num_workers: int,
) -> list[Outcome]:
    """Predict, write and review cases; a case that fails does not stop the others.

    Args:
        cases: cases of this process.
        transforms: pipeline from a case's files to the network's input.
        post_transforms: transform from logits to a label map on the image's native grid, and one that writes it.
        ensemble: networks in evaluation mode, on their device.
        review: scoring and drawing of each predicted case.
        num_workers: processes that load cases.
    Raises:
        DiskError: the output cannot be written.
    """
    invert, save = post_transforms
    outcomes: list[Outcome] = []

    def infer(sample: Sample) -> Any:
        # Inverted here, not in the thread: logits take gigabytes, so only one case may hold them at a time.
        with window_bar(ensemble.count_windows(sample["image"].shape[1:]), sample["id"]) as windows:
            logits = ensemble.predict(sample["image"], windows.update)
        return invert({**sample, "pred": logits})

    def finish(sample: Sample | Failure) -> None:
        # A folder that cannot be written to is no fault of the case, and all other cases would fail too.
        outcomes.append(review(attempt(save, sample, fatal=(DiskError,))))

    loader = case_loader(CasesToPredict(cases, transforms, review.description), num_workers)
    with ensemble.keep_kernel_spectra():  # for all cases, not only for the windows of one
        if process_rank() == 0 and (work := estimate_work(cases, review.description, ensemble)):
            print(work, flush=True)
        bar = tqdm(loader, "predicting", disable=process_rank() != 0)
        overlap_steps(bar, lambda sample: attempt(infer, sample, fatal=(DiskError,)), finish)
    return outcomes


def window_bar(windows: int, case: str) -> "tqdm[NoReturn]":
    """Make the progress bar of a case's windows; it is not shown in a file, nor for cases that take a moment."""
    return tqdm(desc=case, total=windows, unit="window", leave=False, delay=1, disable=process_rank() != 0 or None)


def overlap_steps(items: Iterable[Item], work: Callable[[Item], Result], finish: Callable[[Result], object]) -> None:
    """Run ``work`` on each item while a thread runs ``finish`` on the previous one.

    At most one item waits for ``finish``, so that memory stays bounded; an error in ``finish`` is raised here.

    Args:
        items: iterable, consumed one item at a time.
        work: function that runs in the calling thread.
        finish: function that runs in the thread, on one result of ``work`` after the other.
    """
    with ThreadPoolExecutor(1) as thread:
        pending: Future[object] | None = None
        for item in items:
            result = work(item)
            if pending is not None:
                pending.result()
            pending = thread.submit(finish, result)
            del item, result  # so that only the thread keeps them alive
        if pending is not None:
            pending.result()


def review_finished(cases: Sequence[Case], review: Review) -> list[Outcome]:
    """Review the cases of this process that were predicted by an earlier run."""
    bar = tqdm(cases, "scoring", leave=False, disable=process_rank() != 0 or not cases)
    read = partial(read_prediction, review.folder, review.description.labels)
    return [review(attempt(read, case)) for case in bar]


def attempt(
    step: Callable[[Any], Result], case: Case | Sample | Failure, fatal: tuple[type[Exception], ...] = ()
) -> Result | Failure:
    """Run one step on a case; if it fails, or an earlier step has failed, return the failure.

    Args:
        step: function of one case.
        case: case with "id", or its failure, which is returned unchanged.
        fatal: exceptions that are not caused by the case, and are raised.
    """
    if isinstance(case, Failure):
        return case
    try:
        return step(case)
    except fatal:
        raise
    except Exception as error:  # no error of a single case may end a run over hundreds
        failure = Failure(case["id"], describe_error(case["id"], error, TO_LOWER))
    # The memory that the step used is free only here, after its exception is released.
    return_freed_memory()
    torch.cuda.empty_cache()
    return failure


def report(outcomes: Sequence[Outcome], kept: Sequence[Case], folder: Path, description: DatasetDescription) -> None:
    """Print and write the Dice of all cases that have one, and report warnings, the number of predictions and failures.

    Args:
        outcomes: outcomes of all cases, in the order of the table; the same in every process.
        kept: cases whose label maps others have written or changed.
        folder: folder of predictions.
        description: description of the dataset.
    Raises:
        CasesFailed: cases failed; one line per failure.
    """
    table = DiceTable(description.classes[1:], [*dict(description.regions)])
    for outcome in outcomes:
        if outcome.dice is not None:
            table.add(outcome.case, outcome.dice)
    if process_rank() == 0:
        record_written(folder)
        if table.cases:
            table.write(folder)
            print(table.as_text())
    print_warnings(merge_warnings(outcome.warnings for outcome in outcomes))
    if kept:
        names = list_some([case["id"] for case in kept])
        print(f"kept without a score, because others have written or changed them (--overwrite replaces them): {names}")
    present = sum(os.path.exists(prediction_path(folder, outcome.case)) for outcome in outcomes) + len(kept)
    print(f"{count_of(present, 'prediction')} in {folder}")
    if failures := [line for outcome in outcomes for line in outcome.failures]:
        raise CasesFailed("\n".join(failures))

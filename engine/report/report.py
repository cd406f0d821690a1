"""The report of a run: its sections, and what deserves a warning."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.report.page import Section, Text, render_page
from engine.report.run_folder import Predictions, Run, choose_description, name_weights
from engine.report.score_sections import choose_dice, show_cases, show_dice
from engine.report.training_sections import (
    show_arguments,
    show_curves,
    show_masks,
    show_time,
    show_training,
    show_versions,
    wait_share,
)
from engine.runtime.files import BEST, DAMAGED
from engine.runtime.wording import list_some

LONGEST_WAIT = 0.2  # share of the time


def make_report(run: Run, predictions: Predictions | None, root: Path | None) -> str:
    """Make the page.

    Args:
        run: the run.
        predictions: predictions with its weights, or None.
        root: dataset folder with the images of the predictions, if it is not the one that they were made from.
    Raises:
        InputError: ``root`` is no folder.
    """
    description = choose_description(run, predictions)
    sections = [
        show_training(run),
        show_warnings(run, predictions),
        show_curves(run),
        show_dice(run, predictions, dict(description.regions) if description else ()),
        show_cases(run, predictions, description, root),
        show_masks(run),
        show_time(run),
        show_arguments(run),
        show_versions(run),
    ]
    return render_page(f"Report of {run.folder.resolve().name}", describe(run), sections)


def describe(run: Run) -> str:
    """Describe the run in one line."""
    if run.best is None:
        return "Training run without weights"
    dice = run.progress.best_dice if run.progress is not None else run.best.content.get("best_dice", -math.inf)
    reached = f": mean Dice {dice:.3f} on the validation cases" if math.isfinite(dice) else ""
    return f"{run.best.config.network} on {run.best.description.name}{reached}"


def show_warnings(run: Run, predictions: Predictions | None) -> Section:
    """List what a reader of the numbers must know."""
    lines = [*warn_of_training(run), *warn_of_scores(run, predictions)]
    return Section("Warnings", [Text(line, warning=True) for line in lines] or [Text("Nothing unusual was found.")])


def warn_of_training(run: Run) -> Iterator[str]:
    """Yield a line for everything unusual in the training."""
    planned = run.args.get("max_iter")
    if (progress := run.progress) is not None:
        iteration = progress.iteration
        if isinstance(planned, int) and iteration < planned:
            yield f"The run is not finished: iteration {iteration} of {planned}."
        elif progress.awaits_evaluation:
            yield f"The validation at iteration {iteration} is not finished."
        if progress.skipped:
            where = run.logs.scalars.get("train/skipped_steps")
            found = f" (iterations {list_some([str(step) for step in where.steps])})" if where is not None else ""
            yield f"Steps that were skipped because loss or gradients were not finite: {progress.skipped}{found}."
        if iteration and progress.best_iteration == iteration:
            yield f"The best validation is the last one, at iteration {iteration}: longer training may help."
    if (run.folder / DAMAGED).exists():
        yield f"{DAMAGED}: a checkpoint was damaged, and the run went on from the one before it."
    if (share := wait_share(run)) > LONGEST_WAIT:
        advice = "--cache_dir or more --num_workers shorten that"
        yield f"The steps waited for data during {100 * share:.0f} % of their time; {advice}."


def warn_of_scores(run: Run, predictions: Predictions | None) -> Iterator[str]:
    """Yield a line for everything unusual in the predictions and the scores."""
    if predictions is not None and "trained_weights" in predictions.settings:
        names = name_weights(run, predictions)
        if "" in names:
            yield f"The predictions in {predictions.folder} were made with weights that are not in {run.folder}."
        elif names != [BEST]:
            yield f"The predictions were made with {' and '.join(names)}, not with {BEST}."
    dice = choose_dice(run, predictions)
    if dice is None:
        return
    highest = {name: np.nanmax(values, initial=-1) for name, values in zip(dice.structures, dice.dice.T, strict=True)}
    if missed := [name for name, value in highest.items() if value == 0]:
        yield f"Never found, with a Dice of 0 in every case: {', '.join(missed)}."
    if absent := [name for name, value in highest.items() if value < 0]:
        yield f"In no label and no prediction, so without a Dice: {', '.join(absent)}."

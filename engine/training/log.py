"""Log of a training run: a small interface, its TensorBoard implementation, and the monitor that logs each step."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from engine.evaluation.masks import mask_scalars
from engine.evaluation.metrics import DiceTable
from engine.runtime.devices import read_later
from engine.runtime.errors import InputError
from engine.runtime.files import LAST
from engine.training.state import Progress, TrainingState
from engine.training.step import StepResult

# Consecutive steps that are not finite: the fp16 scaler may need 16 of them at the start; with more a run is lost.
SKIPS_IN_A_ROW = 20


class Log(Protocol):
    """Interface of a logger for training runs; a context manager that closes it."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Log numbers by name."""

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """Log a picture."""

    def flush(self) -> None:
        """Return when everything is on the disk."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class TensorBoardLog:
    """TensorBoard event files.

    Args:
        folder: folder to write to.
        first_step: entries of an earlier run from this step on are discarded.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def figure(self, name: str, figure: Figure, step: int) -> None:
        self._writer.add_figure(name, figure, step)

    def flush(self) -> None:
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


class NoLog:
    """Log that discards everything, for all processes but rank 0."""

    def scalars(self, values: dict[str, float], step: int) -> None: ...

    def figure(self, name: str, figure: Figure, step: int) -> None: ...

    def flush(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class StepMonitor:
    """Monitor that logs loss, learning rate and times of each step, and ends a run whose steps are not finite.

    A step is logged while the next one is running, so that the device never waits for its loss to be read.

    Args:
        log: log to write to.
        progress: progress of the run. If an evaluation is pending, the numbers of the last iteration are logged again,
            since entries of a log can be discarded only by whole steps (``Progress.first_logged``).
    """

    def __init__(self, log: Log, progress: Progress) -> None:
        self.log, self.progress = log, progress
        self._pending: Callable[[], dict[str, float]] = lambda: {}
        if progress.awaits_evaluation:
            self._write(progress.iteration)

    def add(self, iteration: int, step: StepResult, rate: float, started: float, waited: float) -> dict[str, str]:
        """Log the iteration before this one, and keep this one for the next call.

        Args:
            iteration: counted from 1.
            step: result of this step.
            rate: learning rate.
            started: time (``time.perf_counter``) at which the batch was ready.
            waited: seconds spent waiting for the batch.
        Returns: what was logged, as text.
        Raises:
            InputError: ``SKIPS_IN_A_ROW`` steps in a row were not finite.
        """
        read = read_later(torch.stack((step.loss, step.skipped.to(step.loss))))
        logged = self.finish()
        seconds = {"data_wait_s": waited, "compute_s": time.perf_counter() - started}
        self._pending = lambda: self._log_step(iteration, read(), {"lr": rate, **seconds})
        return {name: f"{value:.2e}" if name == "lr" else f"{value:.3f}" for name, value in logged.items()}

    def finish(self) -> dict[str, float]:
        """Log the iteration that is pending, if any, and return what was logged."""
        pending, self._pending = self._pending, lambda: {}
        return pending()

    def _log_step(self, iteration: int, result: list[float], values: dict[str, float]) -> dict[str, float]:
        loss, skipped = result
        self.progress.scalars = {"loss": loss, **values}
        self._count(iteration, bool(skipped))
        self._write(iteration)
        return self.progress.scalars

    def _count(self, iteration: int, skipped: bool) -> None:
        progress = self.progress
        progress.skipped += skipped
        progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
        if not skipped:
            return
        progress.scalars["skipped_steps"] = progress.skipped
        tqdm.write(f"warning: loss or gradients not finite at iteration {iteration}, {progress.skipped} steps skipped")
        if progress.skipped_in_a_row == SKIPS_IN_A_ROW:
            raise InputError(
                f"--lr: found {SKIPS_IN_A_ROW} iterations in a row, up to {iteration}, with loss or gradients that are "
                f"not finite, expected fewer; {LAST} holds the last good weights: start from them with a lower --lr "
                "or with --amp off"
            )

    def _write(self, iteration: int) -> None:
        self.log.scalars({f"train/{name}": value for name, value in self.progress.scalars.items()}, iteration)


def log_evaluation(
    log: Log, state: TrainingState, table: DiceTable, compared: DiceTable, figures: dict[str, Figure]
) -> None:
    """Print and log what an evaluation found.

    Args:
        log: log to write to.
        state: state of the run, its best Dice brought up to date.
        table: Dice of all cases of this evaluation.
        compared: Dice of the cases that every evaluation has.
        figures: pictures by name.
    """
    progress = state.progress
    numbers = f"mean Dice {compared.mean():.4f}, best {progress.best_dice:.4f}"
    tqdm.write(f"iteration {state.iteration}: {numbers}; {progress.validation_share:.0%} of the time validating")
    groups = {
        "dice": compared.means(),
        "mask": mask_scalars(state.evaluated_network),
        "best": {"dice": progress.best_dice},  # services show the last value as the result
        "time": {"validation_share": progress.validation_share},
    }
    if len(table.cases) > len(compared.cases):
        tqdm.write(f"all {len(table.cases)} validation cases: mean Dice {table.mean():.4f}")
        groups["dice_all"] = table.means()
    for group, values in groups.items():
        log.scalars({f"{group}/{name}": value for name, value in values.items()}, state.iteration)
    for name, figure in figures.items():
        log.figure(name, figure, state.iteration)

"""The iterations of a training run: batches, optimiser steps, evaluations, logs."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from monai.data import Dataset, list_data_collate
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from engine.data.loading import EndlessBatches, Loader, SeededDataset, seed_iteration
from engine.evaluation.metrics import DiceTable
from engine.evaluation.pictures import learned_masks, mask_slices
from engine.runtime.devices import read_later
from engine.runtime.distributed import AnyProcess, mean_over_processes, process_count, process_rank, wait_for_all
from engine.runtime.errors import InputError, Stopped
from engine.runtime.files import LAST
from engine.runtime.stop_requests import StopRequests
from engine.training.state import (
    LearningRateSchedule,
    Progress,
    TrainingState,
    running_statistics,
    skip_step_where,
    take_back_where,
)

# Steps that are not finite: the scaler of fp16 may need 16 of them at the start, more do not get better.
SKIPS_IN_A_ROW = 20
LAST_GOOD = f"{LAST} holds the last good weights: start from them with a lower --lr or with --amp off"


@dataclass(frozen=True)
class Step:
    """What a step tells, on the device.

    Args:
        loss: mean over the processes.
        skipped: whether the step changed nothing, because the loss or a gradient was not finite.
    """

    loss: Tensor
    skipped: Tensor


def train(
    args: argparse.Namespace,
    state: TrainingState,
    dataset: Dataset,
    log: "TrainingLog",
    save: Callable[[], None],
    evaluate: Callable[[], None],
    stop: StopRequests,
) -> None:
    """Iterate from the state's iteration to the last, evaluating every ``eval_step`` iterations and at the end.

    The state is saved before each evaluation, and when the run is asked to stop.

    Raises:
        Stopped: that was asked for, and everything is saved.
        InputError: ``SKIPS_IN_A_ROW`` steps were not finite; a weight is not.
    """
    device, part = state.device, (process_rank(), process_count())
    batches = EndlessBatches(len(dataset), args.batch_size, args.seed, state.iteration, args.max_iter, *part)
    loader = Loader(
        SeededDataset(dataset, args.seed),
        batch_sampler=batches,
        num_workers=args.num_workers,
        collate_fn=list_data_collate,
        pin_memory=device.type == "cuda",
    )
    learning_rate = LearningRateSchedule(args.lr_schedule, args.lr, args.warmup_iter, args.max_iter)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    someone, progress = AnyProcess(device), state.progress
    if progress.awaits_evaluation:
        evaluate()
    state.network.train()
    bar = tqdm(loader, "training", initial=state.iteration, total=args.max_iter, disable=process_rank() != 0)
    asked = time.perf_counter()
    for batch in bar:
        started = time.perf_counter()
        image, label = (batch[key].to(device, non_blocking=True) for key in ("image", "label"))
        rate = learning_rate(state.iteration)
        seed_iteration(args.seed, state.iteration, process_rank())
        step = train_step(state, criterion, image, label, rate)
        progress.iteration += 1
        bar.set_postfix(log.add(state.iteration, step, rate, started, waited=started - asked))
        progress.awaits_evaluation = state.iteration % args.eval_step == 0 or state.iteration == args.max_iter
        stopping = someone.says(stop.reason is not None)
        if stopping or progress.awaits_evaluation:
            log.finish()
            check_finite(state)
            save()
        if stopping:
            wait_for_all()  # process 0 has saved
            raise Stopped(f"{stop.reason or 'a request to another process'} at iteration {state.iteration}")
        if progress.awaits_evaluation:
            evaluate()
        asked = time.perf_counter()


def check_finite(state: TrainingState) -> None:
    """Raise InputError where a weight is not finite, before it is saved: a step may be too large for its weights."""
    weights = [value for value in state.network.state_dict().values() if value.is_floating_point()]
    if not torch.stack([value.isfinite().all() for value in weights]).all():
        raise InputError(
            f"--lr: found weights that are not finite at iteration {state.iteration}, expected numbers; {LAST_GOOD}"
        )


def train_step(state: TrainingState, criterion: nn.Module, image: Tensor, label: Tensor, rate: float) -> Step:
    """One optimiser step on crops (N, channels, D, H, W) and labels (N, 1, D, H, W).

    The host waits for nothing. A loss or gradients that are not finite change nothing: neither weights nor moments nor
    the running statistics of normalisations.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    statistics = running_statistics(state.network)
    before = [value.clone() for value in statistics]
    with state.autocast():
        logits = state.forward(image)
    loss = criterion(logits.float(), label)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    loss = mean_over_processes(loss.detach())  # alike everywhere, so that all skip and stop together
    bad = ~(loss.isfinite() & gradient_norm(state.network).isfinite())
    skip_step_where(bad, state.optimizer)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    take_back_where(bad, statistics, before)
    return Step(loss, bad)


def gradient_norm(network: nn.Module) -> Tensor:
    """The norm of all gradients together: a number only if each of them is one; from 1e19 on it is none either.

    Ten times faster on a CPU than the largest absolute value.
    """
    return get_total_norm([parameter.grad for parameter in network.parameters() if parameter.grad is not None])


def keep_best(state: TrainingState, table: DiceTable, output: Path) -> None:
    """Write best_metric_model.pth where the mean Dice is the best so far; the first stands in until there is a Dice."""
    dice, progress = table.mean(), state.progress
    better = dice > progress.best_dice  # NaN is not
    if better or progress.best_iteration == 0:
        progress.best_iteration = state.iteration
        progress.best_dice = dice if better else progress.best_dice
        state.save_best(output)
    tqdm.write(f"iteration {state.iteration}: mean Dice {dice:.4f}, best {progress.best_dice:.4f}")


class TrainingLog:
    """Loss, learning rate, and seconds spent waiting for data and computing, in TensorBoard; and steps that failed.

    An iteration is logged when the next one is under way, so that the device never waits for its loss to be read.

    Args:
        writer: None where another process writes.
        progress: of the run; its last iteration's numbers are written once more where they are to be, see
            ``first_step``.
    """

    def __init__(self, writer: SummaryWriter | None, progress: Progress) -> None:
        self.writer, self.progress = writer, progress
        self.pending: Callable[[], dict[str, float]] = lambda: {}
        if progress.awaits_evaluation:
            self._write(progress.iteration)

    @staticmethod
    def first_step(progress: Progress) -> int:
        """Where the log of a resumed run begins; from there on, what the run before it logged is void.

        It may have logged an evaluation that was not saved, and a step can be voided only whole.
        """
        return progress.iteration + (not progress.awaits_evaluation)

    def add(self, iteration: int, step: Step, rate: float, started: float, waited: float) -> dict[str, str]:
        """Log the iteration before this one.

        Args:
            iteration: counted from 1.
            step: what it told.
            rate: the learning rate.
            started: time (``time.perf_counter``) when the batch was there.
            waited: seconds spent on waiting for the batch.
        Returns: what was logged, to be shown.
        Raises:
            InputError: too many steps in a row were not finite.
        """
        read = read_later(torch.stack((step.loss, step.skipped.to(step.loss))))
        values = self.finish()
        seconds = {"data_wait_s": waited, "compute_s": time.perf_counter() - started}
        self.pending = lambda: self._log(iteration, read(), {"lr": rate, **seconds})
        return {name: f"{value:.2e}" if name == "lr" else f"{value:.3f}" for name, value in values.items()}

    def finish(self) -> dict[str, float]:
        """Log what is pending, and forget it."""
        pending, self.pending = self.pending, lambda: {}
        return pending()

    def _log(self, iteration: int, told: list[float], values: dict[str, float]) -> dict[str, float]:
        loss, skipped = told
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
            found = f"{SKIPS_IN_A_ROW} iterations in a row, up to {iteration}, whose loss or gradients are not finite"
            raise InputError(f"--lr: found {found}, expected fewer; {LAST_GOOD}")

    def _write(self, iteration: int) -> None:
        if self.writer is None:
            return
        for name, value in self.progress.scalars.items():
            self.writer.add_scalar(f"train/{name}", value, iteration)


def log_validation(writer: SummaryWriter, state: TrainingState, table: DiceTable, figure: Figure) -> None:
    """Dice by class, the picture of a case and the blocks' masks, in TensorBoard."""
    for name, value in {"mean": table.mean(), **table.class_means()}.items():
        writer.add_scalar(f"dice/{name}", value, state.iteration)
    writer.add_figure("validation case", figure, state.iteration)
    if masks := learned_masks(state.network):
        writer.add_figure("mask M, central slice", mask_slices(masks), state.iteration)
    writer.flush()

"""The iterations of a training run: batches, optimiser steps, evaluations, logs."""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from monai.data import Dataset, list_data_collate
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from engine.devices import read_later
from engine.distributed import mean_over_processes, process_count, process_rank
from engine.errors import InputError
from engine.metrics import DiceTable
from engine.pictures import learned_masks, mask_slices
from engine.sampling import EndlessBatches, SeededDataset, seed_iteration
from engine.training import TrainingState, learning_rate, skip_step_where

BEST = "best_metric_model.pth"
LAST_GOOD = "last_checkpoint.pth holds the last good weights: start from them with a lower --lr or with --amp off"


def train(
    args: argparse.Namespace,
    state: TrainingState,
    dataset: Dataset,
    device: torch.device,
    autocast: Callable[[], torch.autocast],
    writer: SummaryWriter | None,
    evaluate: Callable[[], None],
) -> None:
    """Iterate from the state's iteration to the last, evaluating every ``eval_step`` iterations and at the end."""
    part = process_rank(), process_count()
    batches = EndlessBatches(len(dataset), args.batch_size, args.seed, state.iteration, args.max_iter, *part)
    loader = DataLoader(
        SeededDataset(dataset, args.seed),
        batch_sampler=batches,
        num_workers=args.num_workers,
        collate_fn=list_data_collate,
        pin_memory=device.type == "cuda",
    )
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    state.network.train()
    bar = tqdm(loader, "training", initial=state.iteration, total=args.max_iter, disable=process_rank() != 0)
    log = TrainingLog(writer, bar)
    asked = time.perf_counter()
    for batch in bar:
        started = time.perf_counter()
        image, label = (batch[key].to(device, non_blocking=True) for key in ("image", "label"))
        rate = learning_rate(args, state.iteration)
        seed_iteration(args.seed, state.iteration, process_rank())
        loss = train_step(state, criterion, image, label, rate, autocast)
        state.iteration += 1
        log.add(state.iteration, loss, rate, started, waited=started - asked)
        if state.iteration % args.eval_step == 0 or state.iteration == args.max_iter:
            log.finish()
            check_finite(state)
            evaluate()
        asked = time.perf_counter()


def check_finite(state: TrainingState) -> None:
    """Raise InputError where a weight is not finite, before it is saved: finite losses may have infinite gradients."""
    finite = torch.stack([parameter.isfinite().all() for parameter in state.network.parameters()]).all()
    if not finite:
        raise InputError(
            f"--lr: found weights that are not finite at iteration {state.iteration}, expected numbers; {LAST_GOOD}"
        )


def train_step(
    state: TrainingState,
    criterion: nn.Module,
    image: Tensor,
    label: Tensor,
    rate: float,
    autocast: Callable[[], torch.autocast],
) -> Tensor:
    """One optimiser step on crops (N, channels, D, H, W) and labels (N, 1, D, H, W); returns the loss, on the device.

    The loss is the mean over the processes. The host waits for nothing. One that is not finite changes no weight.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with autocast():
        logits = state.forward(image)
    loss = criterion(logits.float(), label)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    loss = mean_over_processes(loss.detach())  # alike everywhere, so that all stop together
    skip_step_where(~loss.isfinite(), state.optimizer)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return loss


def keep_best(state: TrainingState, table: DiceTable, output: Path) -> None:
    """Write best_metric_model.pth where the mean Dice is the best so far; a run without any Dice keeps its first."""
    dice = table.mean()
    score = -1.0 if math.isnan(dice) else dice
    if score > state.best_dice:
        state.best_dice, state.best_iteration = score, state.iteration
        state.save_weights(output / BEST)
    tqdm.write(f"iteration {state.iteration}: mean Dice {dice:.4f}, best {state.best_dice:.4f}")


class TrainingLog:
    """Loss, learning rate, and seconds spent waiting for data and computing, on the bar and in TensorBoard.

    An iteration is logged when the next one is under way, so that the device never waits for its loss to be read.
    """

    def __init__(self, writer: SummaryWriter | None, bar: tqdm) -> None:
        self.writer, self.bar = writer, bar
        self.pending: Callable[[], None] = lambda: None

    def add(self, iteration: int, loss: Tensor, rate: float, started: float, waited: float) -> None:
        """Log the iteration before this one.

        Args:
            iteration: counted from 1.
            loss: on the device.
            rate: the learning rate.
            started: time (``time.perf_counter``) when the batch was there.
            waited: seconds spent on waiting for the batch.
        Raises:
            InputError: the loss before this one is not finite.
        """
        read = read_later(loss)
        self.finish()
        seconds = {"data_wait_s": waited, "compute_s": time.perf_counter() - started}
        self.pending = lambda: self._log(iteration, read(), {"lr": rate, **seconds})

    def finish(self) -> None:
        """Log what is pending, and forget it."""
        pending, self.pending = self.pending, lambda: None
        pending()

    def _log(self, iteration: int, loss: float, values: dict[str, float]) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"--lr: found a loss of {loss} at iteration {iteration}, expected finite ones; {LAST_GOOD}"
            )
        values = {"loss": loss, **values}
        shown = {name: f"{value:.2e}" if name == "lr" else f"{value:.3f}" for name, value in values.items()}
        self.bar.set_postfix(shown)
        if self.writer is None:
            return
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, iteration)


def log_validation(writer: SummaryWriter, state: TrainingState, table: DiceTable, figure: Figure) -> None:
    """Dice by class, the picture of a case and the blocks' masks, in TensorBoard."""
    for name, value in {"mean": table.mean(), **table.class_means()}.items():
        writer.add_scalar(f"dice/{name}", value, state.iteration)
    writer.add_figure("validation case", figure, state.iteration)
    if masks := learned_masks(state.network):
        writer.add_figure("mask M, central slice", mask_slices(masks), state.iteration)
    writer.flush()

"""The iterations of a training run: batches, optimiser steps, evaluations, logs."""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from monai.data import CacheDataset, list_data_collate
from monai.losses import DiceCELoss
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from engine.errors import InputError
from engine.metrics import DiceTable
from engine.pictures import learned_masks, mask_slices
from engine.sampling import EndlessBatches, SeededDataset, seed_iteration
from engine.training import TrainingState, learning_rate

BEST = "best_metric_model.pth"


def train(
    args: argparse.Namespace,
    state: TrainingState,
    dataset: CacheDataset,
    device: torch.device,
    autocast: Callable[[], torch.autocast],
    writer: SummaryWriter,
    evaluate: Callable[[], None],
) -> None:
    """Iterate from the state's iteration to the last, evaluating every ``eval_step`` iterations and at the end."""
    batches = EndlessBatches(len(dataset), args.batch_size, args.seed, state.iteration, args.max_iter)
    loader = DataLoader(
        SeededDataset(dataset, args.seed),
        batch_sampler=batches,
        num_workers=args.num_workers,
        collate_fn=list_data_collate,
        pin_memory=device.type == "cuda",
    )
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    state.network.train()
    bar = tqdm(loader, "training", initial=state.iteration, total=args.max_iter)
    asked = time.perf_counter()
    for batch in bar:
        started = time.perf_counter()
        image, label = (batch[key].to(device, non_blocking=True) for key in ("image", "label"))
        rate = learning_rate(args, state.iteration)
        seed_iteration(args.seed, state.iteration)
        loss = train_step(state, criterion, image, label, rate, autocast)
        state.iteration += 1
        seconds = {"data_wait_s": started - asked, "compute_s": time.perf_counter() - started}
        log_training(writer, bar, state.iteration, {"loss": loss, "lr": rate, **seconds})
        if state.iteration % args.eval_step == 0 or state.iteration == args.max_iter:
            evaluate()
        asked = time.perf_counter()


def train_step(
    state: TrainingState,
    criterion: nn.Module,
    image: torch.Tensor,
    label: torch.Tensor,
    rate: float,
    autocast: Callable[[], torch.autocast],
) -> float:
    """One optimiser step on crops (N, channels, D, H, W) and labels (N, 1, D, H, W); returns the loss."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with autocast():
        logits = state.network(image)
    loss = criterion(logits.float(), label)
    if not loss.isfinite():
        raise InputError(
            f"--lr: found a loss of {loss.item()} at iteration {state.iteration}, expected finite ones; "
            "last_checkpoint.pth holds the last good weights: start from them with a lower --lr or with --amp off"
        )
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return loss.item()


def keep_best(state: TrainingState, table: DiceTable, output: Path) -> None:
    """Write best_metric_model.pth where the mean Dice is the best so far; a run without any Dice keeps its first."""
    dice = table.mean()
    score = -1.0 if math.isnan(dice) else dice
    if score > state.best_dice:
        state.best_dice, state.best_iteration = score, state.iteration
        state.save_weights(output / BEST)
    tqdm.write(f"iteration {state.iteration}: mean Dice {dice:.4f}, best {state.best_dice:.4f}")


def log_training(writer: SummaryWriter, bar: tqdm, iteration: int, values: dict[str, float]) -> None:
    """Loss, learning rate, and seconds spent waiting for data and computing, on the bar and in TensorBoard."""
    bar.set_postfix({name: f"{value:.2e}" if name == "lr" else f"{value:.3f}" for name, value in values.items()})
    for name, value in values.items():
        writer.add_scalar(f"train/{name}", value, iteration)


def log_validation(writer: SummaryWriter, state: TrainingState, table: DiceTable, figure: Figure) -> None:
    """Dice by class, the picture of a case and the blocks' masks, in TensorBoard."""
    for name, value in {"mean": table.mean(), **table.class_means()}.items():
        writer.add_scalar(f"dice/{name}", value, state.iteration)
    writer.add_figure("validation case", figure, state.iteration)
    if masks := learned_masks(state.network):
        writer.add_figure("mask M, central slice", mask_slices(masks), state.iteration)
    writer.flush()

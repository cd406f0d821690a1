"""Further measurements of a finished run, each a table beside results.csv: from its log and its checkpoints.

Every row has the columns iteration, block, quantity, distance (from the kernel's centre, rounded, voxels; empty for a
quantity of the whole block) and value. A value at a distance is a mean over the taps at this distance.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.optim import Optimizer

from engine.evaluation.masks import find_blocks, find_masks, mask_scalars, radial_profile
from engine.runtime.files import LAST
from engine.training.optimizer import LearningRateSchedule, make_optimizer
from engine.weights.load_network import build_start, load_trained
from experiments.results import Row
from networks.base import SegmentationNetwork

BETA2 = 0.999  # of AdamW
LOSS_WINDOW = 25  # iterations


def measure_loss(run: Path) -> list[Row]:
    """Average the training loss over windows of iterations."""
    losses = read_log(run).Scalars("train/loss")
    rows = []
    for first in range(0, len(losses), LOSS_WINDOW):
        window = losses[first : first + LOSS_WINDOW]
        rows.append(make_row(window[-1].step, "", "loss", np.mean([event.value for event in window])))
    return rows


def measure_validation(run: Path) -> list[Row]:
    """Read the mean Dice of each validation, and the minutes that the training steps until then took together."""
    log = read_log(run)
    times = [*log.Scalars("train/data_wait_s"), *log.Scalars("train/compute_s")]
    rows = []
    for event in log.Scalars("dice/mean"):
        seconds = sum(time.value for time in times if time.step <= event.step)
        rows.append(make_row(event.step, "", "mean Dice", event.value))
        rows.append(make_row(event.step, "", "minutes", seconds / 60))
    return rows


@torch.no_grad()
def measure_masks(run: Path) -> list[Row]:
    """Describe the masks of a run: learned ones at each snapshot and at the end, fixed ones at the end.

    Quantities: those of ``mask_scalars``, "mask" at distances and, at the end, the "prior" of the start at distances.
    """
    over_training = load_over_training(run)
    rows = []
    for iteration, network in over_training.items():
        for name, value in mask_scalars(network).items():
            block, quantity = name.split("/")
            rows.append(make_row(iteration, block, quantity, value))
        for block, lrbm in find_masks(network).items():
            at_the_end = iteration == max(over_training)
            if at_the_end or list(lrbm.parameters()):
                rows += profile_rows(iteration, block, "mask", radial_profile(lrbm()[0, 0].numpy()))
            if at_the_end:
                rows += profile_rows(iteration, block, "prior", radial_profile(lrbm.prior.numpy()))
    return rows


@torch.no_grad()
def measure_taps(run: Path) -> list[Row]:
    """Describe what the taps of each large kernel learned; taps that never meet data are left out.

    Quantities at distances: "gradient", the root mean square of dL/dW_eff, from Adam's second moment of dL/dW and the
    final mask; "change", the norm of the change of W_eff beyond weight decay, relative to its norm at the start;
    "remaining", the norm of the difference of W_eff between a snapshot and the end, relative to that between start and
    end; "overlap", the share of the grid's positions in which a tap meets data.
    """
    network, config, _, content = load_trained(run / LAST, "run")
    flags, last = content["args"], content["iteration"]
    optimizer = load_optimizer(network, content)
    starts = find_blocks(build_start(config, flags["seed"]))
    snapshots = {iteration: find_blocks(early) for iteration, early in load_over_training(run).items()}
    rows = []
    for name, block in find_blocks(network).items():
        kernel, start = block.get_equivalent_kernel(), starts[name].get_equivalent_kernel()
        shares = overlap(kernel.shape[-1], grid_of(name, config.roi_size))
        mask = torch.ones(()) if block.lrbm is None else block.lrbm()  # dL/dW = M dL/dW_eff
        moment = optimizer.state[block.dwconv.weight]["exp_avg_sq"] / (1 - BETA2**last) / mask.square()

        def profile(values: Tensor, live: NDArray[np.bool_] = shares > 0) -> NDArray[np.float64]:
            return radial_profile(values.mean(dim=(0, 1)).numpy(), live)

        change = (kernel - decay_of(flags) * start).square()
        rows += profile_rows(last, name, "gradient", np.sqrt(profile(moment)))
        rows += profile_rows(last, name, "change", np.sqrt(profile(change) / profile(start.square())))
        rows += profile_rows(last, name, "overlap", radial_profile(shares, shares > 0))
        whole = profile((kernel - start).square())
        for iteration, blocks in snapshots.items():
            rest = profile((kernel - blocks[name].get_equivalent_kernel()).square())
            with np.errstate(invalid="ignore"):  # where nothing has changed
                rows += profile_rows(iteration, name, "remaining", np.sqrt(rest / whole))
    return rows


def load_over_training(run: Path) -> dict[int, SegmentationNetwork]:
    """Load the networks of all snapshots of a run and of its end, by iteration."""
    trained = [load_trained(path, "run") for path in (*run.glob("weights_*.pth"), run / LAST)]
    networks = {found.content["iteration"]: found.network for found in trained}
    return dict(sorted(networks.items()))


def read_log(run: Path) -> EventAccumulator:
    """Read all scalars of a run's TensorBoard log."""
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def load_optimizer(network: SegmentationNetwork, content: dict[str, Any]) -> Optimizer:
    """Load the optimiser of a checkpoint, whose state belongs to the parameters of ``network``."""
    flags = content["args"]
    optimizer = make_optimizer(flags["optim"], network, flags["lr"], flags["weight_decay"], flags["mask_lr_factor"])
    optimizer.load_state_dict(content["optimizer"])
    return optimizer


def decay_of(flags: dict[str, Any]) -> float:
    """Return the factor by which the weight decay of a run has multiplied a weight without gradient."""
    rate = LearningRateSchedule(flags["lr_schedule"], flags["lr"], flags["warmup_iter"], flags["max_iter"])
    return float(np.prod([1 - rate(iteration) * flags["weight_decay"] for iteration in range(flags["max_iter"])]))


def grid_of(block: str, roi_size: Sequence[int]) -> list[int]:
    """Return the grid (D, H, W) that a block of a ``LargeKernelEncoder``, "<encoder>.stages.<i>.<j>", convolves."""
    stage = int(block.split(".")[2])
    return [side // 2 ** (stage + 1) for side in roi_size]


def overlap(ks: int, grid: Sequence[int]) -> NDArray[np.float64]:
    """Compute for each tap of a kernel the share of a grid's positions in which it meets data, (ks, ks, ks)."""
    distances = np.abs(np.arange(ks) - ks // 2)
    shares = [np.maximum(0, side - distances) / side for side in grid]
    return np.einsum("i,j,k->ijk", *shares)


def make_row(iteration: int, block: str, quantity: str, value: float, distance: int | str = "") -> Row:
    """Make a row of a table."""
    row = {"iteration": iteration, "block": block, "quantity": quantity, "distance": distance, "value": f"{value:.6g}"}
    return {name: str(cell) for name, cell in row.items()}


def profile_rows(iteration: int, block: str, quantity: str, profile: Iterable[float]) -> list[Row]:
    """Make one row per distance; NaN, a distance without taps, is left out."""
    values = enumerate(profile)
    return [make_row(iteration, block, quantity, value, place) for place, value in values if not np.isnan(value)]


MEASURES: dict[str, Callable[[Path], list[Row]]] = {
    "loss": measure_loss,
    "validation": measure_validation,
    "masks": measure_masks,
    "taps": measure_taps,
}

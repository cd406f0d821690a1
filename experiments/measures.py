"""Further measurements of a finished run, each a table beside results.csv: from its log and its last checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.optim import Optimizer

from engine.evaluation.masks import find_blocks, find_masks, radial_profile
from engine.runtime.files import LAST
from engine.training.optimizer import make_optimizer
from engine.weights.load_network import build_start, load_trained
from experiments.results import Row
from networks.base import SegmentationNetwork

BETA2 = 0.999  # of AdamW


def measure_masks(run: Path) -> list[Row]:
    """Describe the masks of a run at each evaluation, and at the end in full.

    Columns: iteration, block, quantity, value. The quantities are those of ``mask_scalars`` ("M at distance d" stands
    for distance_d) and, after the last iteration, "M at distance d" and "P at distance d" for all d.
    """
    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    network, _, _, content = load_trained(run / LAST, "run")
    last, rows = content["iteration"], []
    for tag in log.Tags()["scalars"]:
        if tag.startswith("mask/"):
            _, block, name = tag.split("/")
            quantity = name.replace("distance_", "M at distance ")
            until = last if quantity == name else last - 1  # the final profile has all distances
            rows += [
                _row(event.step, block, quantity, event.value) for event in log.Scalars(tag) if event.step <= until
            ]
    for block, lrbm in find_masks(network).items():
        for name, values in (("M", lrbm()[0, 0]), ("P", lrbm.prior)):
            rows += _profile_rows(last, block, name, radial_profile(values.detach().numpy()))
    return rows


@torch.no_grad()
def measure_taps(run: Path) -> list[Row]:
    """Describe what the taps of each large kernel learned, by their rounded distance d from the centre.

    Columns: iteration, block, quantity, value. The quantities are "gradient at distance d", the root mean square of
    dL/dW_eff by Adam's second moment; "change at distance d", the norm of the change of W_eff since the start relative
    to its norm at the start; "overlap at distance d", the mean share of the grid's positions in which a tap meets data.
    """
    network, config, _, content = load_trained(run / LAST, "run")
    optimizer = load_optimizer(network, content)
    starts = find_blocks(build_start(config, content["args"]["seed"]))
    rows = []
    for name, block in find_blocks(network).items():
        kernel, start = block.get_equivalent_kernel(), starts[name].get_equivalent_kernel()
        mask = torch.ones(()) if block.lrbm is None else block.lrbm()
        # The gradient of W is that of W_eff times the mask.
        moment = optimizer.state[block.dwconv.weight]["exp_avg_sq"] / mask.square()
        stage = int(name.split(".")[2])
        grid = [side // 2 ** (stage + 1) for side in config.roi_size]
        profiles = {
            "gradient": np.sqrt(channel_profile(moment) / (1 - BETA2 ** content["iteration"])),
            "change": np.sqrt(channel_profile((kernel - start).square()) / channel_profile(start.square())),
            "overlap": radial_profile(overlap(kernel.shape[-1], grid)),
        }
        for quantity, profile in profiles.items():
            rows += _profile_rows(content["iteration"], name, quantity, profile)
    return rows


def load_optimizer(network: SegmentationNetwork, content: dict[str, Any]) -> Optimizer:
    """Load the optimiser of a checkpoint, whose state belongs to the parameters of ``network``."""
    flags = content["args"]
    optimizer = make_optimizer(flags["optim"], network, flags["lr"], flags["weight_decay"], flags["mask_lr_factor"])
    optimizer.load_state_dict(content["optimizer"])
    return optimizer


def channel_profile(values: Tensor) -> NDArray[np.float64]:
    """Average a depthwise kernel's values over channels and shells of equal distance, (C, 1, K, K, K) -> (shells,)."""
    return radial_profile(values.mean(dim=(0, 1)).numpy())


def overlap(ks: int, grid: Sequence[int]) -> NDArray[np.float64]:
    """Compute for each tap of a kernel the share of a grid's positions in which it meets data, (ks, ks, ks)."""
    distances = np.abs(np.arange(ks) - ks // 2)
    shares = [np.maximum(0, side - distances) / side for side in grid]
    return np.einsum("i,j,k->ijk", *shares)


def _row(iteration: int, block: str, quantity: str, value: float) -> Row:
    return {"iteration": str(iteration), "block": block, "quantity": quantity, "value": f"{value:.6g}"}


def _profile_rows(iteration: int, block: str, name: str, profile: NDArray[np.float64]) -> list[Row]:
    named = ((f"{name} at distance {distance}", value) for distance, value in enumerate(profile.tolist()))
    return [_row(iteration, block, quantity, value) for quantity, value in named]


MEASURES: dict[str, Callable[[Path], list[Row]]] = {"masks": measure_masks, "taps": measure_taps}

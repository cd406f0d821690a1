"""Optimiser and learning-rate schedule of ``main_train.py`` for nnU-Net's trainers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from .adapter import NetworkFromPlans


def make_adamw(network: nn.Module, rate: float, weight_decay: float) -> AdamW:
    """Build AdamW (betas 0.9 and 0.999, eps 1e-8) for the trainable parameters of a network, compiled or not."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = AdamW(trainable, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True)
    for module in network.modules():
        if isinstance(module, NetworkFromPlans):
            module.scale_updates(optimizer)
    return optimizer


class WarmupCosine:
    """Learning rate of each iteration: a linear warm-up over a fiftieth of them, then half a cosine down to 0.

    nnU-Net calls ``step`` at the start of each epoch; the trainer calls ``advance`` before each iteration.

    Args:
        optimizer: optimiser, whose parameters all get this rate.
        peak: highest learning rate.
        iterations_per_epoch: iterations in an epoch.
        epochs: epochs in all.
    """

    def __init__(self, optimizer: Optimizer, peak: float, iterations_per_epoch: int, epochs: int) -> None:
        self.optimizer, self.peak, self.iterations_per_epoch = optimizer, peak, iterations_per_epoch
        self.iterations = iterations_per_epoch * epochs
        self.iteration = 0

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        warm_up = self.iterations // 50
        if iteration < warm_up:
            return self.peak * (iteration + 1) / (warm_up + 1)
        progress = (iteration - warm_up) / max(1, self.iterations - warm_up)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))

    def step(self, epoch: int) -> None:
        """Go to the first iteration of an epoch, counted from 0."""
        self.iteration = epoch * self.iterations_per_epoch
        self._set_rate()

    def advance(self) -> None:
        """Set the rate of the next iteration."""
        self._set_rate()
        self.iteration += 1

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.iteration)


@contextmanager
def default_autocast(device_type: str, precision: torch.dtype | None) -> Iterator[None]:
    """Make ``precision`` the one of autocasts that name none, such as nnU-Net's; None changes nothing."""
    before = torch.get_autocast_dtype(device_type)
    torch.set_autocast_dtype(device_type, precision or before)
    try:
        yield
    finally:
        torch.set_autocast_dtype(device_type, before)

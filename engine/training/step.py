"""Learner (network, optimiser, autocast, scaler) and one training step, which is skipped if it is not finite."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from engine.runtime.devices import make_autocast
from engine.runtime.distributed import averaging_gradients, mean_over_processes, parallelise
from engine.training.average import WeightAverage
from engine.training.optimizer import set_learning_rate, skip_step_where
from networks.base import Logits, SegmentationNetwork

Criterion = Callable[[Any, Tensor], Tensor]  # logits (N, classes, D, H, W), labels (N, 1, D, H, W) -> loss


class Learner:
    """Network with its optimiser, autocast and gradient scaler.

    Args:
        network: network on its device. Training calls it through ``forward``.
        optimizer: optimiser of its parameters.
        precision: autocast precision, None for float32.
        compiled: whether ``forward`` is compiled.
        accumulate: number of equal parts of a batch that a step passes through the network one after the other.
        ema: decay of the exponential moving average of the weights; 0 for none.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        optimizer: Optimizer,
        precision: torch.dtype | None,
        compiled: bool,
        accumulate: int = 1,
        ema: float = 0.0,
    ) -> None:
        self.network, self.optimizer, self.precision = network, optimizer, precision
        self.device = next(network.parameters()).device
        self.compiled, self.accumulate = compiled, accumulate
        self.average = WeightAverage(network, ema) if ema else None
        self.wrap()
        self.autocast = make_autocast(self.device, precision)
        # Scales only in fp16, where gradients may underflow.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)

    def wrap(self) -> None:
        """Build ``forward``, again whenever other parameters require gradients: in all processes at the same time."""
        self.parallel = parallelise(self.network)
        self.forward: Callable[[Tensor], Logits] = torch.compile(self.parallel) if self.compiled else self.parallel

    @property
    def evaluated_network(self) -> SegmentationNetwork:
        """Network that is validated, drawn and saved: the average of the weights, or the network without one."""
        return self.network if self.average is None else self.average.network


@dataclass(frozen=True)
class StepResult:
    """Result of a step, on the device.

    Args:
        loss: mean loss over the processes.
        skipped: whether the step changed nothing, because the loss or a gradient was not finite.
    """

    loss: Tensor
    skipped: Tensor


def train_step(learner: Learner, criterion: Criterion, image: Tensor, label: Tensor, rate: float) -> StepResult:
    """Take one optimiser step, without waiting for the device.

    If the loss or a gradient is not finite, in any part of the batch, nothing changes: neither weights nor their
    average nor moments nor the running statistics of normalisations.

    Args:
        learner: network with its optimiser.
        criterion: loss function.
        image: crops (N, channels, D, H, W); N is a multiple of ``learner.accumulate``.
        label: labels of the crops (N, 1, D, H, W).
        rate: learning rate.
    """
    statistics = running_statistics(learner.network)
    before = [value.clone() for value in statistics]
    learner.optimizer.zero_grad()
    loss = add_gradients(learner, criterion, image, label)
    loss = mean_over_processes(loss)  # the same in all processes, so that all skip and stop together
    bad = ~(loss.isfinite() & gradient_norm(learner.network).isfinite())
    set_learning_rate(learner.optimizer, rate)
    skip_step_where(bad, learner.optimizer)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    restore_where(bad, statistics, before)
    if learner.average is not None:
        learner.average.update(learner.network, bad)
    return StepResult(loss, bad)


def add_gradients(learner: Learner, criterion: Criterion, image: Tensor, label: Tensor) -> Tensor:
    """Add the gradients of the mean loss of a batch's parts, and return that loss.

    Only the activations of one part are in memory at a time. Processes average the sums once, after the last part.

    Args: as ``train_step``.
    """
    count = learner.accumulate
    losses = []
    for part, (crops, labels) in enumerate(zip(image.chunk(count), label.chunk(count), strict=True), start=1):
        with averaging_gradients(learner.parallel, part == count):
            with learner.autocast():
                logits = learner.forward(crops)
            loss = criterion(to_float32(logits), labels) / count
            learner.scaler.scale(loss).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def to_float32(logits: Logits) -> Logits:
    """Convert logits to float32, those of every grid under deep supervision."""
    return logits.float() if isinstance(logits, Tensor) else tuple(grid.float() for grid in logits)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Return the buffers of batch normalisations, which a batch that is not finite would corrupt."""
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def gradient_norm(network: nn.Module) -> Tensor:
    """Compute the norm of all gradients together: finite only if every gradient is, and infinite from 1e19 on.

    On a CPU this is ten times faster than the largest absolute value.
    """
    return get_total_norm([parameter.grad for parameter in network.parameters() if parameter.grad is not None])


def restore_where(bad: Tensor, values: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Restore the previous values of tensors if ``bad`` (one boolean) is true, without a host sync."""
    for value, old in zip(values, before, strict=True):
        value.copy_(torch.where(bad, old, value))

"""Learner (network, optimiser, autocast, scaler) and one training step, which is skipped if it is not finite."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from engine.runtime.devices import make_autocast
from engine.runtime.distributed import mean_over_processes, parallelise
from engine.training.optimizer import set_learning_rate, skip_step_where
from networks.base import SegmentationNetwork

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits (N, classes, D, H, W), labels (N, 1, D, H, W) -> loss


class Learner:
    """Network with its optimiser, autocast and gradient scaler.

    Args:
        network: network on its device, as it is saved, validated and drawn. Training calls it through ``forward``.
        optimizer: optimiser of its parameters.
        precision: autocast precision, None for float32.
        compiled: whether ``forward`` is compiled.
    """

    def __init__(
        self, network: SegmentationNetwork, optimizer: Optimizer, precision: torch.dtype | None, compiled: bool
    ) -> None:
        self.network, self.optimizer, self.precision = network, optimizer, precision
        self.device = next(network.parameters()).device
        self.compiled = compiled
        self.wrap()
        self.autocast = make_autocast(self.device, precision)
        # Scales only in fp16, where gradients may underflow.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)

    def wrap(self) -> None:
        """Build ``forward``, again whenever other parameters require gradients: in all processes at the same time."""
        forward = parallelise(self.network)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(forward) if self.compiled else forward


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

    If the loss or a gradient is not finite, nothing changes: neither weights nor moments nor the running statistics of
    normalisations.

    Args:
        learner: network with its optimiser.
        criterion: loss function.
        image: crops (N, channels, D, H, W).
        label: labels of the crops (N, 1, D, H, W).
        rate: learning rate.
    """
    statistics = running_statistics(learner.network)
    before = [value.clone() for value in statistics]
    with learner.autocast():
        logits = learner.forward(image)
    loss = criterion(logits.float(), label)
    learner.optimizer.zero_grad()
    learner.scaler.scale(loss).backward()
    loss = mean_over_processes(loss.detach())  # the same in all processes, so that all skip and stop together
    bad = ~(loss.isfinite() & gradient_norm(learner.network).isfinite())
    set_learning_rate(learner.optimizer, rate)
    skip_step_where(bad, learner.optimizer)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    restore_where(bad, statistics, before)
    return StepResult(loss, bad)


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

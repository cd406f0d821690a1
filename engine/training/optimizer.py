"""Optimisers and the learning-rate schedule."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from engine.runtime.errors import InputError
from engine.training.finetuning import decay_by_stage
from networks.Rep3D import LRBM
from networks.RepOptimizer import csla_block, scale_updates


@dataclass(frozen=True)
class LearningRateSchedule:
    """Learning rate of each iteration: constant, or a linear warm-up followed by half a cosine down to 0.

    Args:
        kind: "warmup_cosine" or "constant".
        peak: highest learning rate.
        warmup_iter: iterations before the peak.
        max_iter: iterations in all.
    """

    kind: str
    peak: float
    warmup_iter: int
    max_iter: int

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        if self.kind == "constant":
            return self.peak
        if iteration < self.warmup_iter:
            return self.peak * (iteration + 1) / (self.warmup_iter + 1)
        progress = (iteration - self.warmup_iter) / max(1, self.max_iter - self.warmup_iter)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(
    name: str,
    network: nn.Module,
    lr: float,
    weight_decay: float,
    mask_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
    anew: Collection[str] = (),
) -> Optimizer:
    """Build the optimiser ``name`` of ``--optim`` for the trainable parameters.

    AdamW and Adam have betas (0.9, 0.999) and eps 1e-8, SGD has Nesterov momentum 0.99. All are fused: one kernel
    updates all parameters, and a step can be skipped on the device (``skip_step_where``). For REPOPT the updates of the
    large kernels are scaled.

    Args:
        name: "AdamW", "Adam" or "SGD".
        network: network on its device.
        lr: learning rate.
        weight_decay: weight decay; AdamW's is decoupled from the gradient.
        mask_lr_factor: factor of the learning rate of the masks' parameters (``LRBM``).
        layer_decay: factor of the learning rate from a stage of the encoder to the one before it.
        anew: names of parameters that ``layer_decay`` leaves out.
    Raises:
        InputError: the network needs scaled updates, which this optimiser does not support; a ``mask_lr_factor``
            without masks to train; a ``layer_decay`` for a network that names no stages.
    """
    by_stage = decay_by_stage(network, layer_decay, anew) if layer_decay != 1 else {}
    groups = group_by_rate(network, mask_lr_factor, by_stage)
    common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "fused": True}
    if name == "SGD":
        optimizer: Optimizer = SGD(groups, momentum=0.99, nesterov=True, **common)
        for group in groups:
            for parameter in group["params"]:  # PyTorch leaves it unset if a fused optimiser skips its first step
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    else:
        kind = {"AdamW": AdamW, "Adam": Adam}[name]
        optimizer = kind(groups, betas=(0.9, 0.999), eps=1e-8, **common)
    set_learning_rate(optimizer, lr)
    try:
        scale_updates(optimizer, network)
    except ValueError as error:
        raise InputError(f"--optim: {error}") from error
    return optimizer


def group_by_rate(network: nn.Module, mask_lr_factor: float, by_stage: Mapping[Tensor, float]) -> list[dict[str, Any]]:
    """Group the trainable parameters by the factor of their learning rate, for an optimiser.

    Args:
        network: the network.
        mask_lr_factor: factor of the masks' parameters.
        by_stage: factors of some parameters, by which others are multiplied.
    Raises:
        InputError: a factor for masks, and none that is trained.
    """
    masks = [parameter for lrbm in network.modules() if isinstance(lrbm, LRBM) for parameter in lrbm.parameters()]
    if mask_lr_factor != 1 and not masks:
        raise InputError(f"--mask_lr_factor: found {mask_lr_factor:g}, expected a network with learned masks")
    factors: dict[Tensor, float] = dict.fromkeys(masks, mask_lr_factor)
    for block in network.modules():
        if isinstance(block, csla_block):
            factors.update(block.rate_factors())
    groups: dict[float, list[Tensor]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            factor = factors.get(parameter, 1.0) * by_stage.get(parameter, 1.0)
            groups.setdefault(factor, []).append(parameter)
    return [{"params": parameters, "rate_factor": factor} for factor, parameters in groups.items()]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters, times the factor of their group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)  # older checkpoints have no factors


def skip_step_where(bad: Tensor, optimizer: Optimizer) -> None:
    """Make the next step of a fused optimiser change nothing if ``bad`` (one boolean) is true, without a host sync.

    The attribute is the one by which ``torch.amp.GradScaler`` reports infinite gradients to fused optimisers; an
    enabled scaler overwrites it with its own finding, which is true whenever the loss is not finite.
    """
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]


def match_memory_layout(optimizer: Optimizer) -> None:
    """Give moments the memory layout of their parameters, which fused optimisers assume.

    A state saved on another kind of device may have another layout (``engine.runtime.devices.LAYOUTS``).
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

"""RepOptimizer: scale the updates of some parameters by constant masks, in place of parallel branches or fixed masks.

For SGD the gradient is multiplied by the mask of power 2: aL^2 + aS^2 for branches, P^2 for a fixed mask P. For AdamW
gradient and update are multiplied by the mask of power 1, aL + aS or P; the weight decay is not. Training is equivalent
to that of branches or mask, momentum and weight decay included, with two exceptions: branches with rates of their own
need zero weight decay, and branches under AdamW need zero eps.

Source: Ding et al., "Re-parameterizing Your Optimizers rather than Architectures", ICLR 2023.
"""

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from .csla_block import repopt_block


def scale_updates(optimizer: Optimizer, network: nn.Module) -> None:
    """Make an optimiser scale its updates of the kernel of every ``repopt_block`` in ``network``, and of no others.

    Nothing is added to the optimiser's state; call this again for a copy of the optimiser.

    Args:
        optimizer: SGD or AdamW over the network's parameters.
        network: network on its device.
    Raises:
        ValueError: any other optimiser, for which no equivalent of the branches is known.
    """
    blocks = find_scaled_blocks(network)
    if not blocks:
        return
    if not isinstance(optimizer, SGD | AdamW):
        raise ValueError(f"found {type(optimizer).__name__}, expected AdamW or SGD to scale the updates of the kernels")
    power = 2 if isinstance(optimizer, SGD) else 1
    masks: dict[Tensor, Tensor] = {block.dwconv.weight: block.update_mask(power) for block in blocks}
    optimizer.register_step_pre_hook(lambda *_: _scale_gradients(masks))
    if isinstance(optimizer, AdamW):
        before: dict[Tensor, Tensor] = {}
        optimizer.register_step_pre_hook(lambda *_: before.update(_copy_kernels(masks)))
        optimizer.register_step_post_hook(lambda *_: _scale_steps(optimizer, masks, before))


def find_scaled_blocks(network: nn.Module) -> list[repopt_block]:
    """Find the blocks whose updates ``scale_updates`` scales."""
    return [block for block in network.modules() if isinstance(block, repopt_block) and block.field != "uniform"]


@torch.no_grad()
def _scale_gradients(masks: dict[Tensor, Tensor]) -> None:
    for kernel, mask in masks.items():
        if kernel.grad is not None:
            kernel.grad.mul_(mask)


def _copy_kernels(masks: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Copy the kernels that the step is about to change."""
    return {kernel: kernel.detach().clone() for kernel in masks if kernel.grad is not None}


@torch.no_grad()
def _scale_steps(optimizer: Optimizer, masks: dict[Tensor, Tensor], before: dict[Tensor, Tensor]) -> None:
    skipped = getattr(optimizer, "found_inf", None)  # device flag that makes a fused optimiser skip its step
    for group in optimizer.param_groups:
        for kernel in before.keys() & set(group["params"]):
            # The decoupled weight decay is applied first and is not scaled.
            decayed = before[kernel] * (1 - group["lr"] * group["weight_decay"])
            stepped = decayed + masks[kernel] * (kernel - decayed)
            kernel.copy_(stepped if skipped is None else torch.where(skipped.bool(), before[kernel], stepped))
    before.clear()

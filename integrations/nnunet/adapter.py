"""The networks of rep3d behind the interface by which nnU-Net builds a network from its plans."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from rep3d import build_network
from rep3d.RepOptimizer import find_scaled_blocks, scale_updates
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import PlansError

CLASS = "rep3d.nnunet.adapter.NetworkFromPlans"  # network_class_name in the plans
WRITE_PLANS = "python -m rep3d.nnunet.write_plans"


class NetworkFromPlans(nn.Module):
    """Network of ``rep3d.NETWORKS`` with the constructor that nnU-Net calls.

    The network keeps its own initialisation: nnU-Net would apply a method ``initialize``, which this class lacks. The
    weights have the names that they have in ``main_train.py``, after the prefix "model.".

    Args:
        input_channels: channels of the image.
        num_classes: segmentation heads, in general the classes, background included.
        patch_size: (Z, Y, X) of the configuration's patch, voxels.
        network: key of ``rep3d.NETWORKS``.
        deep_supervision: must be False, as the networks return logits at full resolution only.
        deploy: build the folded form for prediction; weights of the training form load as well and are folded.
        overrides: further arguments of the network's constructor, such as ``feat_size`` and ``kernel_size``.
    Shape: (N, input_channels, Z, Y, X) -> logits (N, num_classes, Z, Y, X). ``main_train.py`` has the order (X, Y, Z).
    Raises:
        PlansError: an argument that the network does not accept; for a patch, the message names the nearest one.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        network: str = "REP3D",
        deep_supervision: bool = False,
        deploy: bool = False,
        **overrides: Any,
    ) -> None:
        super().__init__()
        if deep_supervision:
            raise PlansError(
                "deep supervision: found it switched on, expected a trainer without it, such as nnUNetTrainerRep3D or "
                "nnUNetTrainerNoDeepSupervision"
            )
        check_patch(patch_size, network, overrides)
        with _one_line():
            self.model = build_network(network, input_channels, num_classes, patch_size, deploy=deploy, **overrides)
        self.needs_scaled_updates = bool(find_scaled_blocks(self.model))
        # nnU-Net sets decoder.deep_supervision before training and after the final validation; nothing reads it.
        self.decoder = SimpleNamespace(deep_supervision=False)

    def scale_updates(self, optimizer: Optimizer) -> None:
        """Make an optimiser scale its updates as the network asks for: REPOPT does, the others change nothing."""
        scale_updates(optimizer, self.model)
        self.needs_scaled_updates = False

    def forward(self, x: Tensor) -> Tensor:
        if self.needs_scaled_updates and self.training and torch.is_grad_enabled():
            raise PlansError(
                "network: found REPOPT with an optimiser that does not scale its updates, expected nnUNetTrainerRep3D, "
                "or branches=true in --network_args, which any optimiser trains"
            )
        return self.model(x)


def check_patch(patch: Sequence[int], network: str, overrides: Mapping[str, Any]) -> None:
    """Raise ``PlansError``, naming the nearest patch, if the network does not accept ``patch`` (Z, Y, X), voxels."""
    nearest = nearest_patch(patch, network, overrides)
    if list(nearest) != list(patch):
        raise PlansError(
            f"patch_size: found {by(patch)}, expected one that {network} accepts, the nearest is {by(nearest)}; "
            f"{WRITE_PLANS} writes plans with it"
        )


def nearest_patch(patch: Sequence[int], network: str, overrides: Mapping[str, Any]) -> tuple[int, ...]:
    """Round the sides of a patch (Z, Y, X), voxels, to the nearest ones that the network accepts; halves are raised.

    Raises:
        PlansError: the patch is not 3D, or the network cannot be built.
    """
    if len(patch) != 3:
        raise PlansError(f"patch_size: found {by(patch)}, expected three sides: the networks are 3D")
    with _one_line(), torch.device("meta"):
        sizes = build_network(network, 1, 2, **overrides).input_sizes
    rounded = [max(1, math.floor(side / divisor + 0.5)) for side, divisor in zip(patch, sizes.divisors, strict=True)]
    axes = itertools.cycle(sorted(range(3), key=lambda axis: -patch[axis]))
    while math.prod(rounded) < sizes.least_coarse:
        rounded[next(axes)] += 1
    return tuple(count * divisor for count, divisor in zip(rounded, sizes.divisors, strict=True))


def by(sides: Sequence[int]) -> str:
    """Format sides as in 96 x 96 x 96."""
    return " x ".join(map(str, sides))


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn the errors of ``build_network`` for bad arguments and sizes beyond any memory into a ``PlansError``."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        raise PlansError(" ".join(str(error).split())) from error

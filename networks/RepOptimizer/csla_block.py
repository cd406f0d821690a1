"""Large-kernel blocks whose taps learn at different rates, and the equivalent blocks with branches or masks.

CSLA adds a large and a small kernel with constant scales, W = aL WL + pad(aS WS). With the learning rates lL and lS
for the two, a step of SGD changes W by its gradient times aL^2 lL, plus aS^2 lS within the small kernel's window; a
step of Adam by its update times aL lL, plus aS lS within the window. The centre learns faster. A single kernel whose
updates are scaled in this way (``scale_updates``) is trained identically.

A fixed mask W_eff = W * P does the same with P^2 (SGD) or P (Adam) as the scale, and also starts at P * W: a kernel
with both, ``field="prior"`` and ``start="prior"``, is trained like ``rep3d_block`` with the fixed mask.

Source: Ding et al., "Re-parameterizing Your Optimizers rather than Architectures", ICLR 2023, here in three dimensions.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..large_kernel_conv import LargeKernelConv3d
from ..random_numbers import separate_random_numbers
from ..Rep3D.lrbm import compute_distance_prior
from ..Rep3D.rep3d_encoder import rep3d_block

RateField = Literal["csla", "prior", "uniform"]
RATE_FIELDS: tuple[RateField, ...] = ("csla", "prior", "uniform")
Start = Literal["csla", "prior", "plain"]
STARTS: tuple[Start, ...] = ("csla", "prior", "plain")


@dataclass(frozen=True)
class Branches:
    """Constants of CSLA.

    Args:
        small_ks: odd side of the small kernel, voxels.
        large_scale, small_scale: constants aL and aS.
        large_rate, small_rate: factors lL and lS of the learning rate.
    Raises:
        ValueError: a scale or rate that is not positive and finite, ``small_ks`` that is not odd and positive.
    """

    small_ks: int = 3
    large_scale: float = 1.0
    small_scale: float = 1.0
    large_rate: float = 1.0
    small_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.small_ks < 1 or self.small_ks % 2 == 0:
            raise ValueError(f"small_ks: found {self.small_ks}, expected an odd positive number")
        for name in ("large_scale", "small_scale", "large_rate", "small_rate"):
            if not 0 < (factor := getattr(self, name)) < math.inf:  # NaN fails the comparison as well
                raise ValueError(f"{name}: found {factor}, expected a finite positive number")

    def check_fit(self, ks: int) -> None:
        """Raise ValueError if the small kernel is larger than one of side ``ks``."""
        if self.small_ks > ks:
            raise ValueError(f"small_ks: found {self.small_ks}, expected at most ks, {ks}")

    def make_small(self, dim: int) -> LargeKernelConv3d:
        """Create the small kernel, (dim, 1, small_ks, small_ks, small_ks), without affecting other initial weights."""
        with separate_random_numbers():
            return LargeKernelConv3d(dim, self.small_ks, bias=False)

    def add(self, large: Tensor, small: Tensor) -> Tensor:
        """Compute the effective kernel aL WL + pad(aS WS), shape (dim, 1, ks, ks, ks)."""
        return self.large_scale * large + self.pad(self.small_scale * small, large.shape[-1])

    def pad(self, window: Tensor, ks: int) -> Tensor:
        """Pad a window of the small kernel's size with zeros, (..., ks, ks, ks)."""
        return F.pad(window, ((ks - self.small_ks) // 2,) * 6)


class csla_block(rep3d_block):
    """A large and a small depthwise kernel added with constant scales, batch normalisation, GELU.

    Args:
        dim: channels.
        ks: odd side of the large kernel, voxels.
        deploy: build the folded form, a plain block; it loads training checkpoints as well. A training block also
            loads folded kernels and subtracts its small one, so that the convolution stays the same.
        constants: arguments of ``Branches``.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: an even side, a small kernel larger than the large one, or a constant that ``Branches`` refuses.
    """

    def __init__(self, dim: int, ks: int = 21, deploy: bool = False, **constants: Any) -> None:
        super().__init__(dim, ks, mask="none")
        self.branches = Branches(**constants)
        self.branches.check_fit(ks)
        self.small = None if deploy else self.branches.make_small(dim)
        self.register_load_state_dict_pre_hook(_fold_or_split_while_loading)

    def get_equivalent_kernel(self) -> Tensor:
        """Compute the effective kernel aL WL + pad(aS WS), shape (dim, 1, ks, ks, ks)."""
        return self.dwconv.weight if self.small is None else self.branches.add(self.dwconv.weight, self.small.weight)

    def rate_factors(self) -> dict[Tensor, float]:
        """Return the factor of the learning rate of each kernel."""
        if self.small is None:
            return {}
        return {self.dwconv.weight: self.branches.large_rate, self.small.weight: self.branches.small_rate}

    @torch.no_grad()
    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        super().switch_to_deploy(fuse_norm)
        self.small = None
        return self


class repopt_block(rep3d_block):
    """Plain ``rep3d_block`` that provides the scales of its updates, tap by tap.

    Args:
        dim: channels.
        ks: odd side of the kernel, voxels.
        field: scales of the updates: "csla", those of the equivalent ``csla_block``, "prior", those of the fixed mask
            of ``rep3d_block``, or "uniform", no scales.
        start: initial kernel: "csla", the sum of that block's branches (with one seed, the same), "prior", a plain
            kernel times the distance prior, or "plain".
        constants: arguments of ``Branches``, for that block.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: as ``csla_block``; an unknown ``field`` or ``start``; constants that neither of them uses.
    """

    def __init__(
        self, dim: int, ks: int = 21, field: RateField = "csla", start: Start = "csla", **constants: Any
    ) -> None:
        super().__init__(dim, ks, mask="none")
        if field not in RATE_FIELDS:
            raise ValueError(f"field: found {field!r}, expected one of {', '.join(RATE_FIELDS)}")
        if start not in STARTS:
            raise ValueError(f"start: found {start!r}, expected one of {', '.join(STARTS)}")
        self.ks, self.field, self.branches = ks, field, Branches(**constants)
        if "csla" not in (field, start) and self.branches != Branches():
            raise ValueError(
                f"found constants of branches with field {field} and start {start}, expected one to be csla"
            )
        self.branches.check_fit(ks)
        with torch.no_grad():
            if start == "csla":
                small = self.branches.make_small(dim)
                self.dwconv.weight.copy_(self.branches.add(self.dwconv.weight, small.weight))
            elif start == "prior":
                self.dwconv.weight.mul_(compute_distance_prior(ks))

    def update_mask(self, power: int) -> Tensor:
        """Compute the factor of each tap's update, (ks, ks, ks), for the fields "csla" and "prior".

        Args:
            power: 2 for the gradient under SGD, 1 for the update under Adam; the power of the scales, not of the rates.
        """
        weight, branches = self.dwconv.weight, self.branches
        if self.field == "prior":
            return compute_distance_prior(self.ks).to(weight) ** power
        window = weight.new_full((branches.small_ks,) * 3, branches.small_scale**power * branches.small_rate)
        return branches.large_scale**power * branches.large_rate + branches.pad(window, self.ks)


@torch.no_grad()
def _fold_or_split_while_loading(block: csla_block, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Convert a kernel stored with or without a small one to the form of the block."""
    large, small = f"{prefix}dwconv.weight", f"{prefix}small.weight"
    if large not in state_dict or state_dict[large].shape != block.dwconv.weight.shape:
        return
    if block.small is None and small in state_dict:
        state_dict[large] = block.branches.add(state_dict[large], state_dict.pop(small))
    elif block.small is not None and small not in state_dict:
        state_dict[small] = block.small.weight.detach().clone()
        rest = block.branches.add(torch.zeros_like(state_dict[large]), state_dict[small].to(state_dict[large]))
        state_dict[large] = (state_dict[large] - rest) / block.branches.large_scale

"""Two equivalent large-kernel blocks: two branches with any optimiser, one kernel with a RepOptimizer.

CSLA adds a large and a small kernel with constant scales, W = aL WL + pad(aS WS). A step of SGD then changes W by its
gradient times aL^2, plus aS^2 within the small kernel's window; a step of Adam by its update times aL, plus aS within
the window. The centre learns faster. A single kernel whose updates are scaled in this way
(``engine.training.rep_optimizer``) is trained identically.

Source: Ding et al., "Re-parameterizing Your Optimizers rather than Architectures", ICLR 2023, here in three dimensions.
"""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..large_kernel_conv import LargeKernelConv3d
from ..Rep3D.rep3d_encoder import rep3d_block


class csla_block(rep3d_block):
    """A large and a small depthwise kernel added with constant scales, batch normalisation, GELU.

    Args:
        dim: channels.
        ks: odd side of the large kernel, voxels.
        small_ks: odd side of the small kernel, voxels; at most ``ks``.
        large_scale, small_scale: constants aL and aS.
        deploy: build the folded form, a plain block; it loads training checkpoints as well.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: an even side, a small kernel larger than the large one, a scale that is not positive and finite.
    """

    def __init__(
        self,
        dim: int,
        ks: int = 21,
        small_ks: int = 3,
        large_scale: float = 1.0,
        small_scale: float = 1.0,
        deploy: bool = False,
    ) -> None:
        super().__init__(dim, ks, mask="none")
        _check_branches(ks, small_ks, large_scale, small_scale)
        self.large_scale, self.small_scale = large_scale, small_scale
        self.margin = (ks - small_ks) // 2
        self.small = None if deploy else LargeKernelConv3d(dim, small_ks, bias=False)
        self.register_load_state_dict_pre_hook(_fold_branches_while_loading)

    def get_equivalent_kernel(self) -> Tensor:
        """Compute the effective kernel aL WL + pad(aS WS), shape (dim, 1, ks, ks, ks)."""
        return self.dwconv.weight if self.small is None else self.add_branches(self.dwconv.weight, self.small.weight)

    def add_branches(self, large: Tensor, small: Tensor) -> Tensor:
        """Compute aL ``large`` + pad(aS ``small``)."""
        return self.large_scale * large + F.pad(self.small_scale * small, (self.margin,) * 6)

    @torch.no_grad()
    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        super().switch_to_deploy(fuse_norm)
        self.small = None
        return self


class repopt_block(rep3d_block):
    """Plain ``rep3d_block``, initialised like a ``csla_block``, that provides the scales of its updates.

    Args:
        dim: channels.
        ks: odd side of the kernel, voxels.
        small_ks: odd side of the small kernel of the equivalent ``csla_block``, voxels.
        large_scale, small_scale: constants aL and aS of that block.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: as ``csla_block``.
    """

    def __init__(
        self, dim: int, ks: int = 21, small_ks: int = 3, large_scale: float = 1.0, small_scale: float = 1.0
    ) -> None:
        super().__init__(dim, ks, mask="none")
        self.ks, self.small_ks, self.large_scale, self.small_scale = ks, small_ks, large_scale, small_scale
        with torch.no_grad():
            self.dwconv.weight.copy_(csla_block(dim, ks, small_ks, large_scale, small_scale).get_equivalent_kernel())

    def update_mask(self, power: int) -> Tensor:
        """Compute aL^power plus, within the small kernel's window, aS^power; shape (ks, ks, ks).

        Args:
            power: 2 for the gradient under SGD, 1 for the update under Adam.
        """
        window = self.dwconv.weight.new_full((self.small_ks,) * 3, self.small_scale**power)
        return self.large_scale**power + F.pad(window, ((self.ks - self.small_ks) // 2,) * 6)


def _fold_branches_while_loading(block: csla_block, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Add up the branches of a training checkpoint before a deployed block loads it."""
    large, small = f"{prefix}dwconv.weight", f"{prefix}small.weight"
    if block.small is None and large in state_dict and small in state_dict:
        state_dict[large] = block.add_branches(state_dict[large], state_dict.pop(small))


def _check_branches(ks: int, small_ks: int, large_scale: float, small_scale: float) -> None:
    if small_ks > ks:
        raise ValueError(f"small_ks: found {small_ks}, expected at most ks, {ks}")
    for name, scale in (("large_scale", large_scale), ("small_scale", small_scale)):
        if not 0 < scale < math.inf:  # NaN fails the comparison as well
            raise ValueError(f"{name}: found {scale}, expected a finite positive number")

"""Two large-kernel blocks that train alike: two branches under any optimiser, one kernel under a RepOptimizer.

CSLA adds a large and a small kernel with constant scales, W = aL WL + pad(aS WS). A step of SGD then moves W by its
gradient times aL^2 + aS^2 [on the small kernel's window], a step of Adam by its update times aL + aS [there]: the
centre learns faster. A single kernel whose updates are scaled in this way (``engine.training.rep_optimizer``) takes the
same course.

Source: Ding et al., "Re-parameterizing Your Optimizers rather than Architectures", ICLR 2023, here in three dimensions.
"""

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
        large_scale, small_scale: the constants aL and aS.
        deploy: build the folded form, a plain block; it loads training checkpoints, too.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: an even side, a small kernel larger than the large one, a scale that is not positive.
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
        """The kernel that convolves, aL WL + pad(aS WS), shape (dim, 1, ks, ks, ks)."""
        return self.dwconv.weight if self.small is None else self.add_branches(self.dwconv.weight, self.small.weight)

    def add_branches(self, large: Tensor, small: Tensor) -> Tensor:
        """aL ``large`` + pad(aS ``small``)."""
        return self.large_scale * large + F.pad(self.small_scale * small, (self.margin,) * 6)

    @torch.no_grad()
    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        super().switch_to_deploy(fuse_norm)
        self.small = None
        return self


class repopt_block(rep3d_block):
    """A plain ``rep3d_block`` that starts from the kernel of a ``csla_block`` and knows how to scale its updates.

    Args:
        dim: channels.
        ks: odd side of the kernel, voxels.
        small_ks: odd side of the small kernel of the two-branch block that it stands for, voxels.
        large_scale, small_scale: that block's constants aL and aS.
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
        """aL^power everywhere plus aS^power on the small kernel's window, shape (ks, ks, ks).

        Args:
            power: 2 for the gradient under SGD, 1 for the update under Adam.
        """
        window = self.dwconv.weight.new_full((self.small_ks,) * 3, self.small_scale**power)
        return self.large_scale**power + F.pad(window, ((self.ks - self.small_ks) // 2,) * 6)


def _fold_branches_while_loading(block: csla_block, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before a deployed block loads a training checkpoint, add the branches up."""
    large, small = f"{prefix}dwconv.weight", f"{prefix}small.weight"
    if block.small is None and large in state_dict and small in state_dict:
        state_dict[large] = block.add_branches(state_dict[large], state_dict.pop(small))


def _check_branches(ks: int, small_ks: int, large_scale: float, small_scale: float) -> None:
    if small_ks > ks:
        raise ValueError(f"small_ks: found {small_ks}, expected at most ks, {ks}")
    for name, scale in (("large_scale", large_scale), ("small_scale", small_scale)):
        if not scale > 0:  # NaN neither
            raise ValueError(f"{name}: found {scale}, expected a positive number")

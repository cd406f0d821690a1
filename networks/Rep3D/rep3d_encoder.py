"""Parts of the Rep3D encoder: distance prior, receptive bias (LRBM), re-parameterised block.

Source: Lee et al., "Spatially-Adaptive Gradient Re-parameterization for 3D Large Kernel Optimization", ICML 2026.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..base import FoldableBlock
from ..large_kernel_conv import LargeKernelConv3d, large_kernel_conv3d
from ..layers import ChannelLayerNorm

MaskMode = Literal["learned", "fixed", "none"]
MASK_MODES: tuple[MaskMode, ...] = ("learned", "fixed", "none")


def compute_distance_prior(ks: int, beta: float = 1.0) -> Tensor:
    """Compute the prior P[k] = beta / (||k - c||_2 + beta): 1 at the kernel's centre c, smallest in its corners.

    Args:
        ks: odd side of the kernel, voxels.
        beta: distance at which the prior has fallen to one half, voxels.
    Shape: returns (ks, ks, ks), float32.
    Raises:
        ValueError: ``ks`` is not odd and positive, or ``beta`` is not positive and finite.
    """
    if ks < 1 or ks % 2 == 0:
        raise ValueError(f"ks: found {ks}, expected an odd positive number")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta: found {beta}, expected a finite positive number")
    offsets = torch.arange(ks, dtype=torch.float32) - ks // 2
    grid = torch.stack(torch.meshgrid(offsets, offsets, offsets, indexing="ij"))
    return beta / (grid.norm(dim=0) + beta)


class LRBM(nn.Module):
    """Low-rank receptive bias: the mask M = P + f(P) that multiplies a depthwise kernel, P being the distance prior.

    f is a chain of ``depth`` convolutions with LayerNorm and sigmoid between them. Its last convolution is initialised
    with zeros, so that training starts at the prior. The paper uses one map for all channels of a block, normalised
    over the whole map; ``per_channel`` repeats the prior and learns one map per channel, normalised over channels.

    Args:
        channels: channels of the masked kernel.
        ks: odd side of that kernel, voxels.
        learned: add f; without it, M = P.
        beta: decay distance of the prior, voxels.
        depth: convolutions in f.
        generator_ks: odd side of their kernels, voxels.
        per_channel: learn one map per channel instead of one per block.
    Shape: () -> (1, 1, ks, ks, ks), or (channels, 1, ks, ks, ks) with ``per_channel``.
    Raises:
        ValueError: an even or non-positive side, ``depth`` below 1, ``beta`` not positive and finite.
    """

    prior: Tensor

    def __init__(
        self,
        channels: int,
        ks: int,
        learned: bool = True,
        beta: float = 1.0,
        depth: int = 2,
        generator_ks: int = 7,
        per_channel: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth: found {depth}, expected at least 1")
        # Part of the state_dict, so that a checkpoint shows whether its kernels are still to be multiplied by a mask.
        self.register_buffer("prior", compute_distance_prior(ks, beta))
        self.maps = channels if per_channel else 1
        self.generator = self._make_generator(ks, depth, generator_ks, per_channel) if learned else None

    def _make_generator(self, ks: int, depth: int, generator_ks: int, per_channel: bool) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            norm = ChannelLayerNorm(self.maps, eps=1e-5) if per_channel else nn.LayerNorm((ks, ks, ks))
            # Without a bias if the next layer normalises over the whole map, which would cancel it.
            layers += [LargeKernelConv3d(self.maps, generator_ks, bias=per_channel), norm, nn.Sigmoid()]
        last = LargeKernelConv3d(self.maps, generator_ks)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        return nn.Sequential(*layers, last)

    def forward(self) -> Tensor:
        prior = self.prior.expand(1, self.maps, -1, -1, -1)
        if self.generator is None:
            return prior.transpose(0, 1)
        # The mask scales every weight, so it is computed in the parameters' precision even under autocast.
        with torch.autocast(self.prior.device.type, enabled=False):
            return (prior + self.generator(prior)).transpose(0, 1)  # (1, maps, ...) -> (maps, 1, ...)


class MaskedKernelBlock(FoldableBlock):
    """Depthwise large-kernel convolution with the kernel W * M; subclasses add the rest of the block.

    W * M is computed in every forward from the parameters: both receive gradients and neither is changed. In the
    deployed form the stored kernel is the product and there is no mask. A deployed block also loads and folds training
    checkpoints; a training block also loads folded kernels and divides them by its mask, so that the convolution stays
    the same.

    Args:
        dim: channels.
        ks: odd side of the kernel, voxels.
        mask: "learned" (LRBM), "fixed" (M = P) or "none" (plain kernel).
        deploy: build the folded form.
        bias: learn one offset per channel.
        lrbm_options: ``beta``, ``depth``, ``generator_ks``, ``per_channel`` of ``LRBM``.
    Raises:
        ValueError: unknown ``mask``, or a size that ``LRBM`` or the convolution does not accept.
    """

    def __init__(self, dim: int, ks: int, mask: MaskMode, deploy: bool, bias: bool, **lrbm_options: Any) -> None:
        super().__init__()
        if mask not in MASK_MODES:
            raise ValueError(f"mask: found {mask!r}, expected one of {', '.join(MASK_MODES)}")
        self.mask = mask
        self.lrbm_options = {"channels": dim, "ks": ks, "learned": mask == "learned", **lrbm_options}
        self.dwconv = LargeKernelConv3d(dim, ks, bias=bias)
        self.lrbm = LRBM(**self.lrbm_options) if mask != "none" and not deploy else None
        self.register_load_state_dict_pre_hook(_fold_or_unfold_while_loading)

    def convolve(self, x: Tensor) -> Tensor:
        """Apply the depthwise convolution, (N, dim, D, H, W) -> (N, dim, D, H, W)."""
        kernel = self.get_equivalent_kernel()
        if kernel is self.dwconv.weight:  # the layer may have cached its spectrum
            return self.dwconv(x)
        return large_kernel_conv3d(x, kernel, self.dwconv.bias)

    def get_equivalent_kernel(self) -> Tensor:
        """Compute the effective kernel W * M, shape (dim, 1, ks, ks, ks); differentiable, changes nothing."""
        return self.dwconv.weight if self.lrbm is None else self.dwconv.weight * self.lrbm()

    @torch.no_grad()
    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        """Fold the mask into the kernel and drop the generator; a second call changes nothing.

        Args:
            fuse_norm: fold the batch normalisation after the convolution as well, into the kernel and its bias. This
                form is for use in memory only: no newly built network loads its state_dict.
        Raises:
            RuntimeError: ``fuse_norm`` in training mode, in which the normalisation depends on the batch.
        """
        if fuse_norm and self.training:
            raise RuntimeError("fuse_norm needs evaluation mode: call .eval() first")
        self.dwconv.weight.copy_(self.get_equivalent_kernel())
        self.lrbm = None
        if fuse_norm:
            self.fold_norm()
        return self

    def fold_norm(self) -> None:
        """Fold the normalisation into the convolution, if it can be folded."""

    @torch.no_grad()
    def fold_stored_mask(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Multiply this block's kernel in a state_dict by the mask stored with it, and remove the mask's keys."""
        key, lrbm_prefix = f"{prefix}dwconv.weight", f"{prefix}lrbm."
        names = [name for name in state_dict if name.startswith(lrbm_prefix)]
        if not names or key not in state_dict:
            return
        learned = _stored_mask(state_dict, prefix) == "learned"
        lrbm = LRBM(**{**self.lrbm_options, "learned": learned}).to(state_dict[key])
        lrbm.load_state_dict({name.removeprefix(lrbm_prefix): state_dict.pop(name) for name in names})
        state_dict[key] = state_dict[key] * lrbm()

    def has_other_mask(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Return True if a state_dict stores this block's kernel with another kind of mask than the block's."""
        return _stored_mask(state_dict, prefix) not in ("none", self.mask)


class rep3d_block(MaskedKernelBlock):
    """Depthwise large-kernel convolution with the kernel W * M, batch normalisation, GELU; no residual.

    Args:
        dim: channels.
        ks: odd side of the kernel, voxels.
        mask: "learned" (LRBM), "fixed" (M = P) or "none" (plain kernel).
        deploy: build the folded form.
        bias: learn one offset per channel, as RepUX-Net does.
        lrbm_options: ``beta``, ``depth``, ``generator_ks``, ``per_channel`` of ``LRBM``.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: unknown ``mask``, or a size that ``LRBM`` or the convolution does not accept.
    """

    def __init__(
        self,
        dim: int,
        ks: int = 21,
        mask: MaskMode = "learned",
        deploy: bool = False,
        bias: bool = False,
        **lrbm_options: Any,
    ) -> None:
        super().__init__(dim, ks, mask, deploy, bias, **lrbm_options)
        self.norm: nn.Module = nn.BatchNorm3d(dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.convolve(x)))

    def fold_norm(self) -> None:
        norm = self.norm
        if not isinstance(norm, _BatchNorm):  # already fused; _BatchNorm includes SyncBatchNorm
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.dwconv.weight, self.dwconv.bias = fuse_conv_bn_weights(
            self.dwconv.weight, self.dwconv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.norm = nn.Identity()


@torch.no_grad()
def _fold_or_unfold_while_loading(
    block: MaskedKernelBlock, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Convert a kernel stored with this block's kind of mask, or without a mask, to the form of the block."""
    key = f"{prefix}dwconv.weight"
    if key not in state_dict or state_dict[key].shape != block.dwconv.weight.shape:
        return
    kind = _stored_mask(state_dict, prefix)
    if kind == block.mask and block.lrbm is None:
        block.fold_stored_mask(state_dict, prefix)
    elif kind == "none" and block.lrbm is not None:
        state_dict[key] = state_dict[key] / block.lrbm().to(state_dict[key])
        state_dict.update(block.lrbm.state_dict(prefix=f"{prefix}lrbm."))


def _stored_mask(state_dict: Mapping[str, Tensor], prefix: str) -> MaskMode:
    """Return the kind of mask that a state_dict stores next to a kernel."""
    names = [name for name in state_dict if name.startswith(f"{prefix}lrbm.")]
    if not names:
        return "none"
    return "learned" if any(name.startswith(f"{prefix}lrbm.generator.") for name in names) else "fixed"

"""Re-parameterised blocks of the Rep3D encoder; the mask itself is in ``lrbm``.

Source: Lee et al., "Spatially-Adaptive Gradient Re-parameterization for 3D Large Kernel Optimization", ICML 2026.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..base import FoldableBlock
from ..large_kernel_conv import LargeKernelConv3d, large_kernel_conv3d
from .lrbm import CORRECTIONS, LRBM, Correction, compute_distance_prior

__all__ = ["LRBM", "MASK_MODES", "MaskMode", "MaskedKernelBlock", "compute_distance_prior", "rep3d_block"]

MaskMode = Literal["learned", "fixed", "none"]
MASK_MODES: tuple[MaskMode, ...] = ("learned", "fixed", "none")
StoredMask = Literal["none", "fixed", Correction]  # of a learned mask, the form of its correction

# Arguments of LRBM that not every mask uses, with the masks that do and what a message calls them.
OPTIONS_OF_MASKS: tuple[tuple[str, set[StoredMask], set[str]], ...] = (
    ("a fixed or a learned mask", {"fixed", *CORRECTIONS}, {"beta", "mask_floor", "learn_beta"}),
    ("a learned mask", {*CORRECTIONS}, {"correction", "per_channel"}),
    ("a gated or additive mask", {"gated", "additive"}, {"generator_depth", "generator_ks", "generator_padding"}),
)


def check_options(kind: StoredMask, options: Mapping[str, Any]) -> None:
    """Check that a mask uses all of its options.

    Args:
        kind: kind of the mask.
        options: arguments of ``LRBM``; their defaults are always accepted.
    Raises:
        ValueError: an option has no effect on such a mask.
    """
    defaults = inspect.signature(LRBM).parameters
    for description, kinds, names in OPTIONS_OF_MASKS:
        for name in sorted(names & options.keys()):
            if kind not in kinds and options[name] != defaults[name].default:
                raise ValueError(f"{name}: found {options[name]}, expected it only with {description}")


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
        lrbm_options: arguments of ``LRBM`` after ``learned``.
    Raises:
        ValueError: unknown ``mask``, a size that ``LRBM`` or the convolution does not accept, or an option that the
            mask does not use.
    """

    def __init__(self, dim: int, ks: int, mask: MaskMode, deploy: bool, bias: bool, **lrbm_options: Any) -> None:
        super().__init__()
        if mask not in MASK_MODES:
            raise ValueError(f"mask: found {mask!r}, expected one of {', '.join(MASK_MODES)}")
        self.kind: StoredMask = lrbm_options.get("correction", "gated") if mask == "learned" else mask
        self.lrbm_options = {"channels": dim, "ks": ks, "learned": mask == "learned", **lrbm_options}
        lrbm = LRBM(**self.lrbm_options)  # built in any case, to refuse invalid options in any form of the block
        check_options(self.kind, lrbm_options)
        self.dwconv = LargeKernelConv3d(dim, ks, bias=bias)
        self.lrbm = lrbm if mask != "none" and not deploy else None
        self.register_load_state_dict_pre_hook(_fold_or_unfold_while_loading)

    def convolve(self, x: Tensor) -> Tensor:
        """Apply the depthwise convolution, (N, dim, D, H, W) -> (N, dim, D, H, W)."""
        kernel = self.get_equivalent_kernel()
        if kernel is self.dwconv.weight:
            return self.dwconv(x)
        known = None if self.training else self.dwconv.kept_spectrum  # as the layer itself does
        return large_kernel_conv3d(x, kernel, self.dwconv.bias, known=known)

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
        lrbm = LRBM(**{**self.lrbm_options, **_stored_options(state_dict, prefix)}).to(state_dict[key])
        lrbm.load_state_dict({name.removeprefix(lrbm_prefix): state_dict.pop(name) for name in names})
        state_dict[key] = state_dict[key] * lrbm()

    def has_other_mask(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Return True if a state_dict stores this block's kernel with another kind of mask than the block's."""
        return _stored_mask(state_dict, prefix) not in ("none", self.kind)

    def stores_no_mask(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Return True if a state_dict stores this block's kernel without a mask."""
        return f"{prefix}dwconv.weight" in state_dict and _stored_mask(state_dict, prefix) == "none"


class rep3d_block(MaskedKernelBlock):
    """Depthwise large-kernel convolution with the kernel W * M, batch normalisation, GELU; no residual.

    Args:
        dim: channels.
        ks: odd side of the kernel, voxels.
        mask: "learned" (LRBM), "fixed" (M = P) or "none" (plain kernel).
        deploy: build the folded form.
        bias: learn one offset per channel, as RepUX-Net does.
        lrbm_options: arguments of ``LRBM`` after ``learned``.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: unknown ``mask``, a size that ``LRBM`` or the convolution does not accept, or an option that the
            mask does not use.
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
    if kind == block.kind and block.lrbm is None:
        block.fold_stored_mask(state_dict, prefix)
    elif kind == "none" and block.lrbm is not None:
        state_dict[key] = state_dict[key] / block.lrbm().to(state_dict[key])
        state_dict.update(block.lrbm.state_dict(prefix=f"{prefix}lrbm."))


def _stored_mask(state_dict: Mapping[str, Tensor], prefix: str) -> StoredMask:
    """Return the kind of mask that a state_dict stores next to a kernel."""
    names = {name.removeprefix(f"{prefix}lrbm.") for name in state_dict if name.startswith(f"{prefix}lrbm.")}
    if not names:
        return "none"
    if "free" in names:
        return "free"
    if any(name.startswith("generator.") for name in names):
        return "gated" if "gain" in names else "additive"
    return "fixed"


def _stored_options(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Return the arguments of ``LRBM`` that a state_dict shows for the mask next to a kernel."""
    kind, floor = _stored_mask(state_dict, prefix), state_dict.get(f"{prefix}lrbm.floor")
    return {
        "learned": kind != "fixed",
        "correction": "gated" if kind == "fixed" else kind,
        "generator_padding": "replicate" if f"{prefix}lrbm.replicates" in state_dict else "zeros",
        "mask_floor": None if floor is None else floor.item(),
        "learn_beta": f"{prefix}lrbm.log_beta" in state_dict,
    }

"""The Rep3D encoder: distance prior, receptive bias (LRBM), re-parameterised block, four stages.

Source: Lee et al., "Spatially-Adaptive Gradient Re-parameterization for 3D Large Kernel Optimization", ICML 2026.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from networks.large_kernel_conv import LargeKernelConv3d, large_kernel_conv3d

MaskMode = Literal["learned", "fixed", "none"]
MASK_MODES: tuple[MaskMode, ...] = ("learned", "fixed", "none")


def compute_distance_prior(ks: int, beta: float = 1.0) -> Tensor:
    """Reciprocal distance decay P[k] = beta / (||k - c||_2 + beta): 1 at the kernel's centre c, least in its corners.

    Args:
        ks: odd side of the kernel, voxels.
        beta: distance at which the prior has fallen to one half, voxels.
    Shape: returns (ks, ks, ks), float32.
    Raises:
        ValueError: ``ks`` is not odd and positive, or ``beta`` is not positive.
    """
    if ks < 1 or ks % 2 == 0:
        raise ValueError(f"ks: found {ks}, expected an odd positive number")
    if beta <= 0:
        raise ValueError(f"beta: found {beta}, expected a positive number")
    offsets = torch.arange(ks, dtype=torch.float32) - ks // 2
    grid = torch.stack(torch.meshgrid(offsets, offsets, offsets, indexing="ij"))
    return beta / (grid.norm(dim=0) + beta)


class LRBM(nn.Module):
    """Low-rank receptive bias: the mask M = P + f(P) that multiplies a depthwise kernel, P being the distance prior.

    f is a chain of ``depth`` convolutions with LayerNorm and sigmoid between them. Its last convolution starts at zero,
    so that training starts at the prior. The paper's form is one map for all the channels of a block, normalised over
    the whole map; ``per_channel`` repeats the prior and learns one map a channel, normalised over the channels.

    Args:
        channels: channels of the kernel to be masked.
        ks: odd side of that kernel, voxels.
        learned: False leaves f out, M = P.
        beta: decay distance of the prior, voxels.
        depth: convolutions in f.
        generator_ks: odd side of their kernels, voxels.
        per_channel: one map a channel instead of one a block.
    Shape: () -> (1, 1, ks, ks, ks), or (channels, 1, ks, ks, ks) with ``per_channel``.
    Raises:
        ValueError: an even or non-positive side, ``depth`` below 1, ``beta`` not positive.
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
        # In the state_dict, so that a checkpoint tells whether its kernels are still to be multiplied by a mask.
        self.register_buffer("prior", compute_distance_prior(ks, beta))
        self.maps = channels if per_channel else 1
        self.generator = self._make_generator(ks, depth, generator_ks, per_channel) if learned else None

    def _make_generator(self, ks: int, depth: int, generator_ks: int, per_channel: bool) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            norm = ChannelLayerNorm(self.maps, eps=1e-5) if per_channel else nn.LayerNorm((ks, ks, ks))
            # Normalising over the whole map would undo a bias.
            layers += [LargeKernelConv3d(self.maps, generator_ks, bias=per_channel), norm, nn.Sigmoid()]
        last = LargeKernelConv3d(self.maps, generator_ks)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        return nn.Sequential(*layers, last)

    def forward(self) -> Tensor:
        prior = self.prior.expand(1, self.maps, -1, -1, -1)
        if self.generator is None:
            return prior.transpose(0, 1)
        # The mask scales every weight, so it is computed in the parameters' precision whatever the autocast.
        with torch.autocast(self.prior.device.type, enabled=False):
            return (prior + self.generator(prior)).transpose(0, 1)  # (1, maps, ...) -> (maps, 1, ...)


class rep3d_block(nn.Module):
    """Depthwise large-kernel convolution with the kernel W * M, batch normalisation, GELU; no residual.

    W * M is formed in every forward from the parameters: both receive gradients and neither is changed. Deployed, the
    stored kernel is the product and there is no mask. A deployed block also loads a training checkpoint, and folds it.

    Args:
        dim: channels.
        ks: odd side of the kernel, voxels.
        mask: "learned" (LRBM), "fixed" (M = P) or "none" (plain kernel).
        deploy: build the folded form.
        lrbm_options: ``beta``, ``depth``, ``generator_ks``, ``per_channel`` of ``LRBM``.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: unknown ``mask``, or a size that ``LRBM`` or the convolution refuses.
    """

    def __init__(
        self, dim: int, ks: int = 21, mask: MaskMode = "learned", deploy: bool = False, **lrbm_options: Any
    ) -> None:
        super().__init__()
        if mask not in MASK_MODES:
            raise ValueError(f"mask: found {mask!r}, expected one of {', '.join(MASK_MODES)}")
        self.mask = mask
        self.lrbm_options = {"channels": dim, "ks": ks, "learned": mask == "learned", **lrbm_options}
        self.dwconv = LargeKernelConv3d(dim, ks, bias=False)
        self.lrbm = None if mask == "none" else LRBM(**self.lrbm_options)
        self.norm: nn.Module = nn.BatchNorm3d(dim)
        self.act = nn.GELU()
        self.register_load_state_dict_pre_hook(_fold_while_loading)
        if deploy:
            self.switch_to_deploy()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(large_kernel_conv3d(x, self.get_equivalent_kernel(), self.dwconv.bias)))

    def get_equivalent_kernel(self) -> Tensor:
        """The kernel that convolves, W * M, shape (dim, 1, ks, ks, ks); differentiable, changes nothing."""
        return self.dwconv.weight if self.lrbm is None else self.dwconv.weight * self.lrbm()

    @torch.no_grad()
    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        """Fold the mask into the kernel and drop the generator; a second call finds nothing left to fold.

        Args:
            fuse_norm: fold the batch normalisation as well, into the kernel and a new bias. The fused block exists in
                memory only: its state_dict has no normalisation and loads into no newly built network.
        Raises:
            RuntimeError: ``fuse_norm`` in training mode, where the normalisation still follows the batch.
        """
        if fuse_norm and self.training:
            raise RuntimeError("fuse_norm needs evaluation mode: call .eval() first")
        self.dwconv.weight.copy_(self.get_equivalent_kernel())
        self.lrbm = None
        if fuse_norm and isinstance(self.norm, _BatchNorm):  # SyncBatchNorm too
            norm = self.norm
            assert norm.running_mean is not None
            assert norm.running_var is not None
            self.dwconv.weight, self.dwconv.bias = fuse_conv_bn_weights(
                self.dwconv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            self.norm = nn.Identity()
        return self


def _fold_while_loading(block: "rep3d_block", state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before a deployed block loads a training checkpoint, fold: kernel times mask, the mask's keys taken out."""
    lrbm_prefix = f"{prefix}lrbm."
    kernel = state_dict.get(f"{prefix}dwconv.weight")
    trained = {key.removeprefix(lrbm_prefix): value for key, value in state_dict.items() if key.startswith(lrbm_prefix)}
    if block.lrbm is not None or block.mask == "none" or not trained or kernel is None:
        return
    lrbm = LRBM(**block.lrbm_options).to(kernel)
    lrbm.load_state_dict(trained)
    with torch.no_grad():
        state_dict[f"{prefix}dwconv.weight"] = kernel * lrbm()
    for key in trained:
        del state_dict[lrbm_prefix + key]


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (N, C, D, H, W), voxel by voxel; eps 1e-6 as in 3D UX-Net."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        channels_last = input.permute(0, 2, 3, 4, 1)  # (N, C, D, H, W) -> (N, D, H, W, C)
        normalised = F.layer_norm(channels_last, self.normalized_shape, self.weight, self.bias, self.eps)
        return normalised.permute(0, 4, 1, 2, 3)


class Rep3DEncoder(nn.Module):
    """Four stages of rep3d_blocks at 1/2, 1/4, 1/8 and 1/16 of the input's resolution.

    Stem: 7^3 convolution, stride 2. Between stages: channel LayerNorm, 2^3 convolution, stride 2. Each stage's output
    leaves through a channel LayerNorm of its own.

    Args:
        in_chans: input channels.
        depths: blocks a stage.
        dims: channels a stage.
        block_options: arguments of ``rep3d_block``.
    Shape: (N, in_chans, D, H, W) -> [(N, dims[i], D / 2^(i+1), H / 2^(i+1), W / 2^(i+1)) for each stage i].
    """

    def __init__(self, in_chans: int, depths: Sequence[int], dims: Sequence[int], **block_options: Any) -> None:
        super().__init__()
        stem = nn.Sequential(
            nn.Conv3d(in_chans, dims[0], kernel_size=7, stride=2, padding=3), ChannelLayerNorm(dims[0])
        )
        self.downsample_layers = nn.ModuleList([stem])
        for narrow, wide in itertools.pairwise(dims):
            down = nn.Conv3d(narrow, wide, kernel_size=2, stride=2)
            self.downsample_layers.append(nn.Sequential(ChannelLayerNorm(narrow), down))
        self.stages = nn.ModuleList(
            nn.Sequential(*(rep3d_block(dim, **block_options) for _ in range(depth)))
            for dim, depth in zip(dims, depths, strict=True)
        )
        self.norms = nn.ModuleList(ChannelLayerNorm(dim) for dim in dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for downsample, stage, norm in zip(self.downsample_layers, self.stages, self.norms, strict=True):
            x = stage(downsample(x))
            features.append(norm(x))
        return features

"""Layers that several networks use and PyTorch lacks."""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (N, C, D, H, W), voxel by voxel; eps 1e-6 as in 3D UX-Net."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        channels_last = input.permute(0, 2, 3, 4, 1)  # (N, C, D, H, W) -> (N, D, H, W, C)
        normalised = F.layer_norm(channels_last, self.normalized_shape, self.weight, self.bias, self.eps)
        return normalised.permute(0, 4, 1, 2, 3)


class ChannelsLastInstanceNorm3d(nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` that computes and returns channels last; PyTorch's converts to the contiguous layout.

    For devices whose convolutions are faster in that layout (``engine.runtime.devices.LAYOUTS``). Without running
    statistics, as the original's default; mean and variance are exact to float32 rounding. A single sample
    without gradients, a window of a prediction, is only read twice, in its own precision, which is faster.
    Shape: (N, C, D, H, W) -> (N, C, D, H, W).
    """

    @classmethod
    def like(cls, norm: nn.InstanceNorm3d) -> Self:
        """Build the same normalisation, sharing the parameters of ``norm``."""
        own = cls(norm.num_features, eps=norm.eps, affine=norm.affine)
        own.weight, own.bias = norm.weight, norm.bias
        return own.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        if math.prod(input.shape[2:]) == 1:
            raise ValueError(f"input: found shape {tuple(input.shape)}, expected more than one voxel per channel")
        dtype = torch.promote_types(input.dtype, torch.float32)
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled() and len(input) == 1:
            x = input.contiguous(memory_format=torch.channels_last_3d)
            mean, variance = _sample_statistics(x[0], dtype)
            return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)
        x = input.to(dtype, memory_format=torch.channels_last_3d)
        out = _InstanceNorm.apply(x, self.eps)
        if self.weight is not None:
            out = torch.addcmul(self.bias[:, None, None, None], out, self.weight[:, None, None, None])
        return out.to(input.dtype)


class _InstanceNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) over the voxels of each sample and channel, in channels-last layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        mean = _voxel_mean(x)
        centred = x - mean
        scale = (_voxel_mean(centred.square()) + eps).rsqrt_()
        ctx.save_for_backward(x, mean, scale)
        return centred * scale  # not in place, since under torch.compile (2.11) the gradient would be zero

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, mean, scale = ctx.saved_tensors
        normalised = (x - mean).mul_(scale)
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        slope = _voxel_mean(grad * normalised)
        # grad - mean(grad) - normalised * slope, all times scale
        return normalised.mul_(-slope).add_(grad).sub_(_voxel_mean(grad)).mul_(scale), None


def _sample_statistics(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute mean and variance (C,) in ``dtype`` of a sample (C, D, H, W), plane by plane: one fits a CPU's cache."""
    means, variances = [], []
    for plane in x.permute(1, 2, 3, 0).flatten(1, 2):  # (H * W, C)
        plane = plane.to(dtype)
        means.append(plane.mean(0))
        variances.append((plane - means[-1]).square_().mean(0))
    mean = torch.stack(means)
    # The planes are equally large: the variance is the mean of theirs, and the variance of their means.
    return mean.mean(0), torch.stack(variances).mean(0).add_(mean.var(0, correction=0))


def _voxel_mean(x: Tensor) -> Tensor:
    """Average over the voxels: (N, C, D, H, W) channels last -> (N, C, 1, 1, 1). Summing by plane first is parallel."""
    planes = x.permute(0, 2, 3, 4, 1).flatten(2, 3)  # (N, D, H * W, C)
    return planes.sum(2).sum(1).div_(math.prod(x.shape[2:]))[:, :, None, None, None]

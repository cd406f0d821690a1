"""A candidate for GPUs: the depthwise convolution by DFTs as matrix products, partial where the grid is padding.

Along an axis of circular length L only S points of the input are not zero, and only S of the output are wanted (K for
the kernel and its gradient): a dense (L, S) matrix takes the place of a transform of L points. Matrix products have no
best lengths, so that L is as short as wrap-around allows; the real axis has L // 2 + 1 frequencies.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def dft_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """'Same' depthwise convolution as ``large_kernel_conv3d`` has it, x (N, C, D, H, W) and weight (C, 1, K, K, K)."""
    cuts = [max(0, weight.shape[-1] // 2 - side + 1) for side in x.shape[2:]]
    taps = tuple(slice(cut, weight.shape[-1] - cut) for cut in cuts)
    return _DFTConv3d.apply(x, weight[(slice(None), slice(None), *taps)].transpose(0, 1))


class _DFTConv3d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        half_widths = [side // 2 for side in weight.shape[2:]]
        lengths = [side + half_width for side, half_width in zip(x.shape[2:], half_widths, strict=True)]
        x_hat, w_hat = _transform(x, lengths, half_widths), _transform(weight, lengths, (0, 0, 0))
        ctx.save_for_backward(x_hat, w_hat)
        ctx.sizes = x.shape[2:], weight.shape[2:], lengths, half_widths
        return _invert(x_hat * w_hat.conj(), x.shape[2:], lengths, (0, 0, 0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (x_hat, w_hat), (grid, kernel, lengths, half_widths) = ctx.saved_tensors, ctx.sizes
        g_hat = _transform(grad, lengths, (0, 0, 0))
        product = (x_hat * g_hat.conj()).sum(0, keepdim=True)
        return _invert(w_hat * g_hat, grid, lengths, half_widths), _invert(product, kernel, lengths, (0, 0, 0))


def _transform(x: Tensor, lengths: Any, starts: Any) -> Tensor:
    """Half spectrum (..., F0, F1, F2) of x (..., S0, S1, S2) laid at ``starts`` into the grid."""
    depth, height, width = (
        _matrix(range(length), range(start, start + side), length, x)
        for length, start, side in zip(lengths, starts, x.shape[2:], strict=True)
    )
    half = width[: lengths[2] // 2 + 1]
    spectrum = torch.complex(x @ half.real.T, x @ half.imag.T)
    return torch.einsum("fd,ncdhw,gh->ncfgw", depth, spectrum, height)


def _invert(spectrum: Tensor, sides: Any, lengths: Any, starts: Any) -> Tensor:
    """The points from ``starts`` on, ``sides`` of them, of the grid with this half spectrum."""
    depth, height, width = (
        _matrix(range(start, start + side), range(length), length, spectrum).conj() / length
        for length, start, side in zip(lengths, starts, sides, strict=True)
    )
    frequencies = spectrum.shape[-1]
    twice = width.new_full((frequencies,), 2.0).real
    twice[0] = 1.0
    if lengths[2] % 2 == 0:
        twice[-1] = 1.0  # this frequency, like the first, is its own mirror image
    half = width[:, :frequencies] * twice
    planes = torch.einsum("df,ncfgw,hg->ncdhw", depth, spectrum, height)
    return planes.real @ half.real.T - planes.imag @ half.imag.T


def _matrix(rows: range, columns: range, length: int, like: Tensor) -> Tensor:
    """exp(-2 pi i row column / length), angles reduced in integers and computed in float64."""
    turns = (torch.tensor(rows)[:, None] * torch.tensor(columns) % length).double() / length
    matrix = torch.polar(torch.ones_like(turns), -2 * math.pi * turns)
    return matrix.to(like.device, torch.promote_types(like.dtype, torch.complex64))

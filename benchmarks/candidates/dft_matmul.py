"""Candidate for GPUs: depthwise convolution by DFTs as real matrix products, in half precision or TF32.

Along an axis of circular length L, only S points of the input are not zero and only S points of the output are needed
(K for the kernel and its gradient), so that a dense matrix of 2L x S or 2S x 2L numbers replaces a transform. Real and
imaginary parts are stacked in the order that turns each axis into one product over contiguous memory, without any
transposition. Unlike FFTs, matrix products have no preferred lengths: L is the shortest length without wrap-around,
rounded up to a multiple of 4.

On a CPU the FFT is faster: 0.41 s against 1.07 s for forward and backward pass at the four stages of a 96^3 crop (two
cores, float32, batch size 1, 2026-11-22).

Source: the correlation theorem, as in ``networks.large_kernel_conv``; complex products as real 2 x 2 blocks.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from networks.large_kernel_conv import crop_to_reach

MULTIPLE = 4  # L is a multiple of it, so that rows of 2L half-precision numbers start at multiples of 16 bytes


def dft_matmul(x: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """'Same' depthwise convolution like ``large_kernel_conv3d``, of x (N, C, D, H, W) with weight (C, 1, K, K, K).

    Args:
        x: input.
        weight: one kernel per channel, which may be larger than the grid.
        dtype: type of matrices and spectra, by default that of the input. The GPU's matrix units accumulate products
            of half-precision numbers in float32 and round once per axis; float32 is TF32 where PyTorch allows it.
    """
    return _DFTConv3d.apply(x, crop_to_reach(weight, x.shape[2:]).transpose(0, 1), dtype or x.dtype)


def traffic(shape: Sequence[int], kernel_size: int, element_bytes: int) -> dict[str, int]:
    """Count the bytes that each pass reads and writes; "backward" is dx and dw with one transform for both.

    Args:
        shape: (N, C, D, H, W) of the input.
        kernel_size: side of the kernel, before it is cropped to the taps that reach data.
        element_bytes: bytes per number.
    """
    samples, channels, *grid = shape
    taps = [min(kernel_size, 2 * side - 1) for side in grid]
    lengths = _lengths(grid, [tap // 2 for tap in taps])
    spectrum = 2 * _frequencies(lengths[0]) * lengths[1] * lengths[2]

    def transform(sides: Sequence[int]) -> int:
        first = 2 * _frequencies(lengths[0]) * sides[1] * sides[2]
        second = 2 * _frequencies(lengths[0]) * lengths[1] * sides[2]
        return math.prod(sides) + 2 * first + 2 * second + spectrum

    numbers = traffic_of_passes(samples, channels, transform(grid), transform(taps), spectrum)
    return {name: element_bytes * number for name, number in numbers.items()}


def traffic_of_passes(samples: int, channels: int, grid: int, kernel: int, spectrum: int) -> dict[str, int]:
    """Count what a convolution by transforms reads and writes in each pass, in the unit of its arguments.

    Args:
        samples, channels: numbers of samples and channels of the input.
        grid, kernel: traffic of the transform of one channel of one sample, and of one kernel.
        spectrum: size of the spectrum of one channel.
    """
    grids = samples * channels
    product = (2 * grids + channels) * spectrum  # two spectra per sample, and one for all samples
    found = {
        "forward": 2 * grids * grid + channels * kernel + product,
        "dx": 2 * grids * grid + product,
        "dw": grids * grid + product + channels * kernel,
    }
    return {**found, "backward": found["dx"] + found["dw"] - grids * grid}


class _DFTConv3d(torch.autograd.Function):
    """Convolution on a circular grid: x starts at p, the half-width of the kernel; kernel and gradient start at 0.

    Forward transforms are scaled by 1 / sqrt(L) per axis, so that spectra fit into float16; inverses are not scaled.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        half_widths = [side // 2 for side in weight.shape[2:]]
        lengths = _lengths(x.shape[2:], half_widths)
        x_hat, w_hat = _transform(x.to(dtype), lengths, half_widths), _transform(weight.to(dtype), lengths, (0, 0, 0))
        ctx.save_for_backward(x_hat, w_hat)
        ctx.sizes = x.shape[2:], weight.shape[2:], lengths, half_widths
        ctx.types = x.dtype, weight.dtype
        return _invert(multiply_spectra(x_hat, w_hat, conjugate=True), x.shape[2:], lengths, (0, 0, 0)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x_hat, w_hat), (grid, kernel, lengths, half_widths) = ctx.saved_tensors, ctx.sizes
        g_hat = _transform(grad.to(x_hat.dtype), lengths, (0, 0, 0))
        dx = dw = None
        if ctx.needs_input_grad[0]:
            product = multiply_spectra(g_hat, w_hat, conjugate=False)
            dx = _invert(product, grid, lengths, half_widths).to(ctx.types[0])
        if ctx.needs_input_grad[1]:
            product = multiply_spectra(x_hat, g_hat, conjugate=True, summed=True)
            dw = _invert(product, kernel, lengths, (0, 0, 0)).to(ctx.types[1])
        return dx, dw, None


def multiply_spectra(first: Tensor, second: Tensor, conjugate: bool, summed: bool = False) -> Tensor:
    """Multiply spectra elementwise; real and imaginary parts are along the second to last axis.

    Args:
        first, second: spectra (N, C, F, L, 2, L), one of which may have a single sample for all.
        conjugate: True to conjugate the second.
        summed: True to sum over the samples; N becomes 1.
    """
    if first.is_cuda:  # one Triton kernel, which needs a GPU
        from benchmarks.candidates.triton_kernels import multiply_spectra_kernel

        return multiply_spectra_kernel(first, second, conjugate, summed)
    (a, b), (c, d) = first.unbind(-2), second.unbind(-2)
    d = -d if conjugate else d
    product = torch.stack((a * c - b * d, a * d + b * c), dim=-2)
    return product.sum(0, keepdim=True) if summed else product


def _transform(x: Tensor, lengths: Sequence[int], starts: Sequence[int]) -> Tensor:
    """Transform x (N, C, S0, S1, S2), at ``starts`` in the circular grid, to a half spectrum (N, C, F, L1, 2, L2)."""
    samples, channels, depth, height, width = x.shape
    first, second, third = _forward_matrices(tuple(x.shape[2:]), tuple(lengths), tuple(starts), x.device, x.dtype)
    batch, frequencies = samples * channels, _frequencies(lengths[0])
    planes = _times(first, x.reshape(batch, depth, -1))
    rows = _times(second, planes.view(batch * frequencies, 2 * height, width))
    spectrum = rows.view(-1, 2 * width) @ third
    return spectrum.view(samples, channels, frequencies, lengths[1], 2, lengths[2])


def _invert(spectrum: Tensor, sides: Sequence[int], lengths: Sequence[int], starts: Sequence[int]) -> Tensor:
    """Transform a half spectrum back to the box of ``sides`` points at ``starts`` in the circular grid."""
    samples, channels, frequencies, *_ = spectrum.shape
    batch, (depth, height, width) = samples * channels, sides
    options = spectrum.device, spectrum.dtype
    first, second, third = _inverse_matrices(tuple(sides), tuple(lengths), tuple(starts), *options)
    rows = spectrum.view(-1, 2 * lengths[2]) @ third
    planes = _times(second, rows.view(batch * frequencies, 2 * lengths[1], width))
    out = _times(first, planes.view(batch, 2 * frequencies, height * width))
    return out.view(samples, channels, depth, height, width)


Triple = tuple[int, int, int]


@functools.cache  # computed on the CPU: a copy to the GPU in every call would be a host sync
def _forward_matrices(
    sides: Triple, lengths: Triple, starts: Triple, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the three matrices of ``_transform``.

    Order of the axes, with c for real and imaginary part: (S0, S1 S2) -> (F c, S1 S2) = (F, c S1, S2) -> (F, L1 c, S2)
    = (F L1, c S2) -> (F L1, c L2).
    """
    ranges = [range(start, start + side) for start, side in zip(starts, sides, strict=True)]
    first = _complex_matrix(range(_frequencies(lengths[0])), ranges[0], lengths[0])[..., 0].mT  # (F, c, S0)
    second = _complex_matrix(range(lengths[1]), ranges[1], lengths[1]).permute(0, 2, 3, 1)  # (L1, c', c, S1)
    third = _complex_matrix(ranges[2], range(lengths[2]), lengths[2]).permute(3, 0, 2, 1)  # (c, S2, c', L2)
    matrices = first.flatten(0, 1), second.flatten(2).flatten(0, 1), third.flatten(2).flatten(0, 1)
    first, second, third = (
        (matrix / math.sqrt(length)).to(device, dtype) for matrix, length in zip(matrices, lengths, strict=True)
    )
    return first, second, third


@functools.cache
def _inverse_matrices(
    sides: Triple, lengths: Triple, starts: Triple, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the three matrices of ``_invert``, for the axes of ``_transform`` in reverse order.

    (F L1, c L2) -> (F L1, c S2) = (F, L1 c, S2) -> (F, c S1, S2) = (F c, S1 S2) -> (S0, S1 S2).
    """
    ranges = [range(start, start + side) for start, side in zip(starts, sides, strict=True)]
    third = _complex_matrix(range(lengths[2]), ranges[2], -lengths[2]).permute(3, 0, 2, 1)  # (c, L2, c', S2)
    second = _complex_matrix(ranges[1], range(lengths[1]), -lengths[1]).permute(2, 0, 1, 3)  # (c', S1, L1, c)
    frequencies = range(_frequencies(lengths[0]))
    first = _complex_matrix(ranges[0], frequencies, -lengths[0])[:, :, 0]  # (S0, F, c): real part of the output
    twice = first.new_full((len(frequencies), 1), 2.0)  # the omitted frequencies mirror these
    twice[0] = twice[-1] = 1.0  # L is even: the first and the last are their own mirror images
    matrices = (first * twice).flatten(1), second.flatten(2).flatten(0, 1), third.flatten(2).flatten(0, 1)
    first, second, third = (matrix.to(device, dtype) for matrix in matrices)
    return first, second, third


def _times(matrix: Tensor, batch: Tensor) -> Tensor:
    """Multiply one matrix (R, S) with each of (B, S, T), without copies."""
    return torch.bmm(matrix.expand(len(batch), -1, -1), batch)


def _complex_matrix(rows: range, columns: range, length: int) -> Tensor:
    """Compute exp(-2 pi i row column / length) in float64 as real blocks (rows, columns, 2, 2).

    Entry [..., p, q] maps part q (real, imaginary) of the input to part p of the output. A negative length gives the
    inverse. Angles are reduced in integers.
    """
    turns = (torch.tensor(rows)[:, None] * torch.tensor(columns) % abs(length)).double() * (-2 * math.pi / length)
    real, imaginary = turns.cos(), turns.sin()
    return torch.stack((torch.stack((real, -imaginary), -1), torch.stack((imaginary, real), -1)), -2)


def _lengths(grid: Sequence[int], half_widths: Sequence[int]) -> list[int]:
    return [math.ceil((side + half) / MULTIPLE) * MULTIPLE for side, half in zip(grid, half_widths, strict=True)]


def _frequencies(length: int) -> int:
    return length // 2 + 1

"""Triton kernels of the candidates. ``TRITON_INTERPRET=1``, set before this module is imported, runs them on a CPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # complex numbers of a spectrum per program
ROWS = 64  # rows of the grid per tile, which has the full width of the grid


def multiply_spectra_kernel(first: Tensor, second: Tensor, conjugate: bool, summed: bool) -> Tensor:
    """``benchmarks.candidates.dft_matmul.multiply_spectra`` in one kernel, which reads and writes each number once."""
    samples = max(len(first), len(second))
    out = first.new_empty(1 if summed else samples, *first.shape[1:])
    parts, width = first[0].numel() // 2, first.shape[-1]  # complex numbers per sample
    summands = samples if summed else 1
    strides = [0 if len(factor) == 1 else 2 * parts for factor in (first, second)]
    grid = triton.cdiv(parts, BLOCK), len(out)
    with torch.cuda.device_of(out):
        _multiply_spectra[grid](first, second, out, parts, width, *strides, summands, CONJUGATE=conjugate, BLOCK=BLOCK)
    return out


@triton.jit
def _multiply_spectra(
    first,
    second,
    out,
    parts,
    width,
    first_stride,
    second_stride,
    summands,
    CONJUGATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Multiply a block of complex numbers of one sample; in a row, ``width`` real parts precede the imaginary parts."""
    sample = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < parts
    place = index // width * (2 * width) + index % width
    real = tl.zeros((BLOCK,), tl.float32)
    imaginary = tl.zeros((BLOCK,), tl.float32)
    for summand in range(summands):
        a_place = first + (sample + summand) * first_stride + place
        b_place = second + (sample + summand) * second_stride + place
        a = tl.load(a_place, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(a_place + width, mask=mask, other=0.0).to(tl.float32)
        c = tl.load(b_place, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(b_place + width, mask=mask, other=0.0).to(tl.float32)
        if CONJUGATE:
            d = -d
        real += a * c - b * d
        imaginary += a * d + b * c
    out_place = out + sample * (2 * parts) + place
    tl.store(out_place, real.to(out.dtype.element_ty), mask=mask)
    tl.store(out_place + width, imaginary.to(out.dtype.element_ty), mask=mask)


def correlate(x: Tensor, weight: Tensor) -> Tensor:
    """'Same' correlation of x (N, C, D, H, W) with weight (C, 1, KD, KH, KW), both contiguous and of the same type."""
    samples, channels, *sides = x.shape
    out = torch.empty_like(x)
    rows = sides[0] * sides[1]
    grid = triton.cdiv(rows, ROWS), samples * channels
    constants = {"ROWS": ROWS, "WIDTH": _tile_width(sides[2])}
    with torch.cuda.device_of(x):
        _correlate[grid](x, weight, out, channels, *sides, *weight.shape[2:], **constants)
    return out


def correlate_for_kernel(x: Tensor, grad: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """Compute the kernel's gradient (C, 1, KD, KH, KW) in float32 from input and output gradient (N, C, D, H, W)."""
    samples, channels, *sides = x.shape
    out = torch.empty((channels, 1, *kernel), device=x.device)
    grid = kernel[0] * kernel[1], channels
    constants = {"ROWS": ROWS, "WIDTH": _tile_width(sides[2])}
    with torch.cuda.device_of(x):
        _correlate_for_kernel[grid](x, grad, out, samples, channels, *sides, *kernel, **constants)
    return out


def _tile_width(side: int) -> int:
    return max(16, triton.next_power_of_2(side))  # 16 is the minimum for a matrix unit


@triton.jit
def _load_shifted(x, row, plane, column, depth, height, width, KD: tl.constexpr, KH: tl.constexpr):
    """Load the rows of a volume that row ``plane`` of taps multiplies for the output rows ``row``; zero outside."""
    d, h = row // height + plane // KH - KD // 2, row % height + plane % KH - KH // 2
    inside = (d >= 0) & (d < depth) & (h >= 0) & (h < height)
    place = x + ((d * height + h) * width)[:, None] + column[None, :]
    return tl.load(place, mask=inside[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def _correlate(
    x,
    weight,
    out,
    channels,
    depth,
    height,
    width,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Compute ``ROWS`` rows of one channel of one sample.

    For each plane and row of taps, (i, j), the input rows, shifted by (i, j), times a (WIDTH, WIDTH) band matrix are
    added to the output rows. The matrix has tap k where input column minus output column is k minus the half-width.
    """
    volume = tl.program_id(1).to(tl.int64)  # sample * channels + channel
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    tap = column[:, None] - column[None, :] + KW // 2
    on_band = (tap >= 0) & (tap < KW)
    x += volume * depth * height * width
    weight += volume % channels * KD * KH * KW
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for plane in range(KD * KH):
        rows = _load_shifted(x, row, plane, column, depth, height, width, KD, KH)
        band = tl.load(weight + plane * KW + tap, mask=on_band, other=0.0)
        total = tl.dot(rows, band, total)
    to = out + volume * depth * height * width + row[:, None] * width + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=(row < depth * height)[:, None] & (column < width)[None, :])


@triton.jit
def _correlate_for_kernel(
    x,
    grad,
    out,
    samples,
    channels,
    depth,
    height,
    width,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Compute the gradient of one row of taps (i, j) of one channel from shifted input rows and gradient rows.

    In their (WIDTH, WIDTH) product, the gradient of tap k is the sum of the diagonal where input column minus output
    column is k minus the half-width.
    """
    plane, channel = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, WIDTH)
    valid = (column < width)[None, :]
    total = tl.zeros((WIDTH, WIDTH), tl.float32)
    for sample in range(samples):
        start = (sample * channels + channel).to(tl.int64) * depth * height * width
        for first in range(0, depth * height, ROWS):
            row = first + tl.arange(0, ROWS)
            rows = _load_shifted(x + start, row, plane, column, depth, height, width, KD, KH)
            mask = (row < depth * height)[:, None] & valid
            grads = tl.load(grad + start + row[:, None] * width + column[None, :], mask=mask, other=0.0)
            total = tl.dot(tl.trans(rows), grads, total)
    tap = column[:, None] - column[None, :] + KW // 2
    to = out + (channel * KD * KH + plane) * KW
    for k in range(KW):
        tl.store(to + k, tl.sum(tl.where(tap == k, total, 0.0)))

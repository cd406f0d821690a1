"""Candidate for GPUs: depthwise convolution as matrix products over tiles of taps, without intermediate tensors.

The convolution of a row of the grid with a row of taps is a product with a band matrix, which the Triton kernel builds
from the taps on the fly. Output and gradients are sums of these products over the planes and rows of taps. This takes
several times the arithmetic of the convolution, but on the GPU's matrix units, and no memory besides the tensors.

Source: the direct sum, with its innermost axis written as a Toeplitz matrix.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from networks.large_kernel_conv import crop_to_reach


def implicit_gemm(x: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """'Same' depthwise convolution like ``large_kernel_conv3d``, of x (N, C, D, H, W) with weight (C, 1, K, K, K).

    Args:
        x: input, on a GPU (on a CPU under ``TRITON_INTERPRET=1``).
        weight: one kernel per channel, which may be larger than the grid.
        dtype: type of the factors, by default that of the input; float32 is used as TF32. Sums are in float32.
    """
    return _ImplicitGemm.apply(x, crop_to_reach(weight, x.shape[2:]), dtype or x.dtype)


class _ImplicitGemm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        from benchmarks.candidates.triton_kernels import correlate

        ctx.types = x.dtype, weight.dtype
        x, weight = x.to(dtype).contiguous(), weight.to(dtype).contiguous()
        ctx.save_for_backward(x, weight)
        return correlate(x, weight).to(ctx.types[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        from benchmarks.candidates.triton_kernels import correlate, correlate_for_kernel

        x, weight = ctx.saved_tensors
        grad = grad.to(x.dtype).contiguous()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = correlate(grad, weight.flip(2, 3, 4)).to(ctx.types[0])
        if ctx.needs_input_grad[1]:
            dw = correlate_for_kernel(x, grad, weight.shape[2:]).to(ctx.types[1])
        return dx, dw, None

"""A candidate for GPUs: the depthwise convolution as matrix products over tiles of taps, nothing stored in between.

A row of the grid times a row of taps is a product with a band matrix, which the kernel (Triton) makes from the taps as
it goes; output and gradients are sums of such products over the taps' planes and rows. That is several times the
arithmetic of the convolution, but on the GPU's matrix units, and no memory beside the tensors themselves.

Source: the direct sum, its innermost axis written as a Toeplitz matrix.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from networks.large_kernel_conv import crop_to_reach


def implicit_gemm(x: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """'Same' depthwise convolution as ``large_kernel_conv3d`` has it, x (N, C, D, H, W) and weight (C, 1, K, K, K).

    Args:
        x: input, on a GPU (on a CPU under ``TRITON_INTERPRET=1``).
        weight: one kernel a channel; may be larger than the grid.
        dtype: of the factors, the input's by default; float32 ones are taken as TF32. Sums are float32.
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

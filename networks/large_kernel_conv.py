"""Depthwise 'same' 3D convolution for large kernels: direct for small problems, by FFT for the others.

A 21^3 depthwise kernel costs 9,261 multiply-adds per voxel, and PyTorch's backward pass runs them about a hundred times
slower than its forward pass. The FFT path needs six real transforms for the output and both gradients, whatever the
kernel size. ``benchmarks/large_kernel_conv.py`` measures both paths; ``choose_method`` uses its results.

Source: the correlation theorem, on the shortest circular length that keeps the 'same' outputs free of wrap-around.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .exporting import is_exported

Method = Literal["direct", "fft"]

# Nanoseconds by (device, pass): per multiply-add of the direct path; per n log2(n), n grid points, of the FFT path.
# Measured by benchmarks/large_kernel_conv.py with two CPU cores.
DIRECT_COST = {("cpu", "forward"): 0.015, ("cpu", "backward"): 2.0}
FFT_COST = {("cpu", "forward"): 0.5, ("cpu", "backward"): 0.7}
# A chunk of channels is as large as keeps its spectra in a CPU core's cache; a GPU transforms all channels at once.
CPU_SPECTRUM_BYTES = 4 * 2**20
# Maximum spectra that a call keeps for its backward pass, or a layer for its next call. The largest of a 96^3 crop take
# 86 MB per sample; beyond the budget they are computed again, two more transforms than six, to spare GPU memory.
SPECTRA_BUDGET = 512 * 2**20


class KernelSpectrum:
    """Spectrum of a layer's kernel, kept from call to call.

    It does not notice changes of the kernel. Only a comparison of all taps would reveal an edit of ``weight.data``, and
    the host would have to wait for a GPU's answer, so ``keep_kernel_spectra`` decides how long spectra are kept.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[Any, ...], Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # copies of a layer, pickled ones included, keep none, because nothing would end that

    def find(self, weight: Tensor, dtype: torch.dtype, lengths: Sequence[int]) -> Tensor:
        """Return the spectrum (1, C, ...) of a kernel (C, 1, KD, KH, KW) in ``dtype`` on a grid of ``lengths``."""
        key = weight.shape, weight.device, dtype, tuple(lengths)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, _kernel_spectrum(weight.detach().to(dtype), lengths)
        return self._kept[1]


@contextmanager
def keep_kernel_spectra(network: nn.Module) -> Iterator[None]:
    """Within this context, transform each large kernel of a network once instead of once per call.

    For prediction, where one window follows the other. The kernels must not change within the context: the network
    would go on with the former ones. Layers in training mode and calls that need gradients are not affected.
    """
    layers = [
        module
        for module in network.modules()
        if isinstance(module, LargeKernelConv3d) and module.kept_spectrum is None  # no context around this one
    ]
    try:
        for layer in layers:
            layer.kept_spectrum = KernelSpectrum()
        yield
    finally:
        for layer in layers:
            layer.kept_spectrum = None


def large_kernel_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    method: Method | None = None,
    budget: int = SPECTRA_BUDGET,
    known: KernelSpectrum | None = None,
) -> Tensor:
    """Convolve depthwise with stride 1 and zero padding that keeps the grid, equal to ``F.conv3d(groups=C)``.

    Args:
        x: input. Integer types are not supported.
        weight: one kernel per channel, every side odd. May be larger than the grid.
        bias: one value per channel.
        method: path of both passes; by default ``choose_method`` picks one for each pass.
        budget: bytes of spectra that the FFT path may keep for its backward pass, which computes larger ones again.
        known: kept spectrum of the kernel, used if it fits ``budget`` and no gradients are needed.
    Shape:
        x (N, C, D, H, W) or (C, D, H, W), weight (C, 1, KD, KH, KW), bias (C,) -> as x. N may be 0.
    Half-precision inputs, and any under autocast, are transformed in float32 (half-precision FFTs exist only for
    powers of two); the output has the type that ``F.conv3d`` would return. The FFT path has first derivatives only.
    Exported (``networks.exporting``), it is the forward pass's method in plain operations, on all channels at once.
    Raises:
        ValueError: the shapes do not fit, or a kernel side is even.
    """
    exported = is_exported()
    if torch.compiler.is_dynamo_compiling() and not exported:  # imported here, because that module loads the compiler
        from .opaque_conv import opaque_large_kernel_conv3d

        return opaque_large_kernel_conv3d(x, weight, bias, method, budget, known)
    if x.dim() == 4:
        return large_kernel_conv3d(x[None], weight, bias, method, budget, known)[0]
    _check_shapes(x, weight)
    device = x.device.type
    # On the meta device only shapes and multiply-adds matter, which are those of the plain convolution. The FFT of an
    # empty batch fails; what is exported does not depend on the batch.
    if device == "meta" or (not exported and x.numel() == 0):
        return F.conv3d(x, weight, bias, padding=_half_widths(weight), groups=x.shape[1])
    weight = crop_to_reach(weight, _sides(x))
    forward = method or choose_method(x, weight, "forward")
    backward = method or choose_method(x, weight, "backward")
    needs_grad = not exported and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if forward == "direct" and (backward == "direct" or not needs_grad):
        return F.conv3d(x, weight, bias, padding=_half_widths(weight), groups=x.shape[1])

    lowered = torch.is_autocast_enabled(device) and x.dtype != torch.float64  # autocast does not convert doubles
    out_dtype = torch.get_autocast_dtype(device) if lowered else x.dtype
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    with torch.autocast(device, enabled=False):
        x = x.to(dtype)
        channel_bytes = _channel_bytes(x, weight)
        if exported:
            out = _correlate_at_once(x, weight.to(dtype))
        elif needs_grad:
            keep = forward == backward == "fft" and (x.shape[0] + 1) * x.shape[1] * channel_bytes <= budget
            out = _DepthwiseConv3d.apply(x, weight.to(dtype), forward, backward, keep)
        elif known is not None and x.shape[1] * channel_bytes <= budget:
            out, _ = _correlate(x, weight, known.find(weight, dtype, circular_lengths(x, weight)))
        else:
            out, _ = _correlate(x, weight.to(dtype))
        if bias is not None:
            out = out + bias.to(dtype)[:, None, None, None]
    return out.to(out_dtype)


class LargeKernelConv3d(nn.Conv3d):
    """``nn.Conv3d`` restricted to depthwise 'same' convolution, computed by ``large_kernel_conv3d``.

    Parameters, initialisation and state_dict keys are those of the plain layer, so checkpoints are interchangeable.

    Args:
        channels: input and output channels.
        kernel_size: odd side of the cubic kernel, voxels.
        bias: learn one offset per channel.
    Shape: (N, channels, D, H, W) -> (N, channels, D, H, W), or both without N.
    Raises:
        ValueError: ``kernel_size`` is not odd and positive.
    """

    kept_spectrum: KernelSpectrum | None = None  # set by ``keep_kernel_spectra``
    method: Method | None = None  # of both passes; by default the cheaper one of each

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: found {kernel_size}, expected an odd positive number")
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        known = None if self.training else self.kept_spectrum
        return large_kernel_conv3d(input, self.weight, self.bias, self.method, known=known)


def choose_method(x: Tensor, weight: Tensor, direction: Literal["forward", "backward"]) -> Method:
    """Choose the cheaper path of one pass by measured cost; only shapes and device decide, so that runs are repeatable.

    Args:
        x: input (N, C, D, H, W); a device without measured costs is priced as the CPU.
        weight: kernel (C, 1, KD, KH, KW), cropped to the taps that reach data.
        direction: "forward" for the output, "backward" for both gradients.
    """
    key = (x.device.type, direction) if (x.device.type, direction) in DIRECT_COST else ("cpu", direction)
    multiply_adds = math.prod(_sides(x)) * math.prod(_sides(weight))
    points = math.prod(circular_lengths(x, weight))
    return "direct" if DIRECT_COST[key] * multiply_adds <= FFT_COST[key] * points * math.log2(points + 1) else "fft"


class _DepthwiseConv3d(torch.autograd.Function):
    """Depthwise convolution and its gradients, each pass by its own method.

    With p the kernel's half-width, x is placed p voxels into the circular grid, the kernel and the output's gradient g
    at its origin. Then out = x (*) w and dw = x (*) g (correlations) start at the origin, and dx = w * g at p.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, forward: Method, backward: Method, keep: bool) -> Tensor:
        ctx.method = backward
        spectra: list[Tensor] = []
        if forward == "direct":
            out = F.conv3d(x, weight, padding=_half_widths(weight), groups=x.shape[1])
        else:
            out, spectra = _correlate(x, weight, keep=keep)
        # With kept spectra, the backward pass needs only the shapes of x and w.
        kept = (tensor.new_empty(()).expand(tensor.shape) if keep else tensor for tensor in (x, weight))
        ctx.save_for_backward(*kept, *spectra)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight, *spectra = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad[:2]
        if ctx.method == "direct":
            return *_direct_gradients(grad, x, weight, need_x, need_weight), None, None, None
        half_widths = _half_widths(weight)
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if need_weight else None
        lengths, kept = circular_lengths(x, weight), iter(spectra)
        for channels in _channel_chunks(x, weight):
            if spectra:
                x_hat, w_hat = next(kept), next(kept)
            else:
                x_hat, w_hat = _shifted_spectrum(x[:, channels], weight), _kernel_spectrum(weight[channels], lengths)
            g_hat = torch.fft.rfftn(grad[:, channels], s=lengths, dim=_SPACE)
            if grad_x is not None:
                grad_x[:, channels] = _inverse(w_hat * g_hat, x, weight)[_crop(x, half_widths)]
            if grad_weight is not None:
                product = (x_hat * g_hat.conj()).sum(0, keepdim=True)  # (N, C, ...) -> (1, C, ...)
                grad_weight[channels] = _inverse(product, x, weight)[_crop(weight)].transpose(0, 1)
        return grad_x, grad_weight, None, None, None


_SPACE = (-3, -2, -1)


def _correlate(
    x: Tensor, weight: Tensor, spectrum: Tensor | None = None, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Compute the output and, with ``keep``, the list of spectra of input and kernel, chunk by chunk.

    Args:
        x: input (N, C, D, H, W).
        weight: kernel (C, 1, KD, KH, KW).
        spectrum: the kernel's spectrum, if known.
        keep: return the spectra.
    """
    lengths = circular_lengths(x, weight)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    spectra: list[Tensor] = []
    for channels in _channel_chunks(x, weight):
        x_hat = _shifted_spectrum(x[:, channels], weight)
        w_hat = _kernel_spectrum(weight[channels], lengths) if spectrum is None else spectrum[:, channels]
        out[:, channels] = _inverse(x_hat * w_hat.conj(), x, weight)[_crop(x)]
        spectra += [x_hat, w_hat] if keep else []
    return out, spectra


def _correlate_at_once(x: Tensor, weight: Tensor) -> Tensor:
    """Compute the output of all channels at once, without a loop that depends on the size of the batch."""
    w_hat = _kernel_spectrum(weight, circular_lengths(x, weight))
    return _inverse(_shifted_spectrum(x, weight) * w_hat.conj(), x, weight)[_crop(x)]


def _shifted_spectrum(x: Tensor, weight: Tensor) -> Tensor:
    """Compute the half spectrum of the input (N, C, ...), placed the kernel's half-width into the grid."""
    sizes = zip(_half_widths(weight), circular_lengths(x, weight), _sides(x), strict=True)
    margins = [(half_width, length - half_width - side) for half_width, length, side in sizes]
    shifted = F.pad(x, [amount for margin in reversed(margins) for amount in margin])  # F.pad: last axis first
    return torch.fft.rfftn(shifted, dim=_SPACE)


def _kernel_spectrum(weight: Tensor, lengths: Sequence[int]) -> Tensor:
    """Compute the half spectrum (1, C, ...) of the kernel."""
    return torch.fft.rfftn(weight.transpose(0, 1), s=tuple(lengths), dim=_SPACE)


def _inverse(spectrum: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.fft.irfftn(spectrum, s=circular_lengths(x, weight), dim=_SPACE)


def circular_lengths(x: Tensor, weight: Tensor) -> list[int]:
    """Return the lengths of the circular grid: side + half-width per axis, rounded up to a length of fast FFTs.

    Side + half-width keeps wrapped values out of the output. Fast lengths have no prime factor above 7 and, on the last
    axis, whose transform is real, are even: MKL took 0.73 times as long at 42^3 as at 45^3, the next 2-3-5-smooth
    length, and 0.91 times at 75 x 75 x 80 as at 75^3.
    """
    *rows, last = (side + half_width for side, half_width in zip(_sides(x), _half_widths(weight), strict=True))
    return [*(_next_smooth(length) for length in rows), 2 * _next_smooth((last + 1) // 2)]


@functools.cache
def _next_smooth(length: int) -> int:
    """Return the smallest number >= ``length`` without a prime factor above 7, that is, a divisor of a power of 210."""
    while pow(210, length.bit_length(), length):
        length += 1
    return length


def _channel_bytes(x: Tensor, weight: Tensor) -> int:
    """Bytes of the half spectrum of one channel of one sample."""
    *rows, last = circular_lengths(x, weight)
    return math.prod(rows) * (last // 2 + 1) * 2 * x.element_size()


def _channel_chunks(x: Tensor, weight: Tensor) -> list[slice]:
    """Divide the channels so that the input spectra of a chunk fit a CPU core's cache; one chunk on other devices."""
    channels = x.shape[1]
    step = channels
    if x.device.type == "cpu":
        step = max(1, CPU_SPECTRUM_BYTES // (x.shape[0] * _channel_bytes(x, weight)))
    return [slice(start, start + step) for start in range(0, channels, step)]


def _crop(like: Tensor, start: tuple[int, ...] = (0, 0, 0)) -> tuple[Any, ...]:
    """Return the index of the grid of ``like``, placed at ``start``."""
    return ..., *(slice(first, first + side) for first, side in zip(start, _sides(like), strict=True))


def _sides(tensor: Tensor) -> tuple[int, ...]:
    """Return the three sides of a grid or a kernel as numbers, which ``torch.jit.trace`` represents by tensors."""
    return tuple(int(side) for side in tensor.shape[2:])


def _half_widths(weight: Tensor) -> tuple[int, ...]:
    return tuple(side // 2 for side in _sides(weight))


def crop_to_reach(weight: Tensor, grid: Sequence[int]) -> Tensor:
    """Crop a kernel to the taps that can reach data: offsets beyond side - 1 only see padding."""
    cuts = [max(0, half - (side - 1)) for half, side in zip(_half_widths(weight), grid, strict=True)]
    depth, height, width = (slice(cut, length - cut) for cut, length in zip(cuts, _sides(weight), strict=True))
    return weight[:, :, depth, height, width]


def _direct_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    half_widths, groups = _half_widths(weight), x.shape[1]
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, (1, 1, 1), half_widths, (1, 1, 1), False, (0, 0, 0), groups, (need_x, need_weight, False)
    )
    return grad_x, grad_weight


def _check_shapes(x: Tensor, weight: Tensor) -> None:
    if x.dim() != 5:
        raise ValueError(f"input: found shape {tuple(x.shape)}, expected (N, C, D, H, W) or (C, D, H, W)")
    if weight.dim() != 5 or weight.shape[:2] != (x.shape[1], 1):
        raise ValueError(f"weight: found shape {tuple(weight.shape)}, expected ({x.shape[1]}, 1, KD, KH, KW)")
    if any(side % 2 == 0 for side in _sides(weight)):
        raise ValueError(f"weight: found kernel sides {_sides(weight)}, expected odd ones")

"""Device, autocast precision and memory layout of a run."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import nn

from engine.runtime.errors import InputError
from networks.base import InputSizes
from networks.layers import ChannelsLastInstanceNorm3d

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
SMALLEST_BF16_SIDE = 3
Layout = Literal["plain", "channels_last", "channels_last_kernels"]
# GPUs use the plain layout until benchmarks.gpu has compared the two.
LAYOUTS: dict[str, Layout] = {"cpu": "channels_last", "cuda": "plain"}
Network = TypeVar("Network", bound=nn.Module)


def choose_device(gpu: str) -> torch.device:
    """Choose the device of ``--gpu``: "cpu", or the number of a CUDA device.

    Without CUDA the CPU is used, and one printed line reports it.

    Raises:
        InputError: the value is neither of these, or no CUDA device of this machine has that number.
    """
    if gpu == "cpu":
        return torch.device("cpu")
    if not gpu.isdecimal():
        raise InputError(f"--gpu: found {gpu!r}, expected cpu or the number of a CUDA device")
    if not torch.cuda.is_available():
        print(f"--gpu {gpu}: no CUDA device found, running on the CPU")
        return torch.device("cpu")
    if int(gpu) >= torch.cuda.device_count():
        raise InputError(f"--gpu: found {gpu}, expected cpu or a number below {torch.cuda.device_count()}")
    return torch.device("cuda", int(gpu))


def choose_precision(
    amp: str, device: torch.device, roi_size: Sequence[int], input_sizes: InputSizes, gradients: bool = True
) -> torch.dtype | None:
    """Choose the autocast precision for ``--amp``; None is float32.

    "auto" selects bf16 where it is faster: on GPUs with native bf16 (other GPUs get fp16) and on CPUs with AMX. Two
    cores that have only AVX-512 bf16 trained no faster than in float32.

    Args:
        amp: one of ``engine.runtime.arguments.AMP_CHOICES``.
        device: the device that computes.
        roi_size: (D, H, W) of the crops, voxels.
        input_sizes: input sizes of the network; their divisors give its coarsest grid.
        gradients: whether gradients are computed, as in training.
    Raises:
        InputError: gradients in bf16 on a CPU with a coarsest grid of fewer than 3 voxels along an axis: oneDNN (3.12)
            returns wrong ones, some of them infinite. Its outputs are right.
    """
    divisors = input_sizes.divisors
    coarsest = (side // divisor for side, divisor in zip(roi_size, divisors, strict=True))
    coarse = gradients and device.type == "cpu" and min(coarsest) < SMALLEST_BF16_SIDE
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if amp == "auto":
        return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") and not coarse else None
    if amp == "bf16" and coarse:
        found, least = (" x ".join(map(str, size)) for size in (roi_size, [SMALLEST_BF16_SIDE * d for d in divisors]))
        raise InputError(f"--amp: found bf16 on a CPU with crops of {found}, expected at least {least}, or off")
    return PRECISIONS[amp]


def to_device(network: Network, device: torch.device, layout: Layout | None = None) -> Network:
    """Move a network to its device, in the memory layout in which its 3D convolutions are fastest.

    Args:
        network: network to move, changed in place and returned.
        device: target device.
        layout: memory layout of kernels and activations; by default that of the device in ``LAYOUTS``. The output of
            PyTorch's instance normalisation always has the plain layout; "channels_last" replaces it by one that keeps
            the layout of its input, "channels_last_kernels" does not replace it.
    """
    network.to(device)
    layout = layout or LAYOUTS.get(device.type, "plain")
    if layout != "plain":
        for tensor in itertools.chain(network.parameters(), network.buffers()):
            if tensor.dim() == 5:  # Module.to(memory_format=...) treats 4D tensors as images and fails
                tensor.data = tensor.data.to(memory_format=torch.channels_last_3d)
    if layout == "channels_last":
        _use_channels_last_norms(network)
    return network


def _use_channels_last_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.InstanceNorm3d and not child.track_running_stats:
            setattr(module, name, ChannelsLastInstanceNorm3d.like(child))
        else:
            _use_channels_last_norms(child)


def read_later(values: torch.Tensor) -> Callable[[], list[float]]:
    """Start copying numbers (count,) from their device; the returned function waits for this copy only."""
    if values.device.type != "cuda":
        return values.tolist
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values.detach(), non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return copy.tolist()

    return read


def amp_name(precision: torch.dtype | None) -> str:
    """Name the ``--amp`` value of an autocast precision: bf16, fp16, or off for float32."""
    return next(name for name, dtype in PRECISIONS.items() if dtype == precision)


def make_autocast(device: torch.device, precision: torch.dtype | None) -> Callable[[], torch.autocast]:
    """Make a factory of autocast contexts for this device and precision."""
    return partial(torch.autocast, device.type, dtype=precision, enabled=precision is not None)

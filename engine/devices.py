"""The device a run is on, and the precision of its autocast."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from engine.errors import InputError

AMP_CHOICES = ("auto", "bf16", "fp16", "off")


def choose_device(gpu: str) -> torch.device:
    """The device of ``--gpu``: "cpu", or a CUDA device's number. Without CUDA the CPU, said in one line.

    Raises:
        InputError: neither, or a number that this machine does not have.
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


def choose_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of ``--amp``, None for float32.

    "auto" takes bf16 where the device computes in it, otherwise fp16 on a GPU and float32 on a CPU.
    """
    if amp == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        features = torch.cpu.get_capabilities()
        return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to its device, on a CPU with channels last: the faster layout for its 3D convolutions."""
    layout = torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format
    return network.to(device, memory_format=layout)  # type: ignore[call-overload]


def make_autocast(device: torch.device, precision: torch.dtype | None) -> Callable[[], torch.autocast]:
    """A maker of autocast contexts for this device and precision."""
    return partial(torch.autocast, device.type, dtype=precision, enabled=precision is not None)

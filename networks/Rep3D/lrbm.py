"""Mask of a large kernel: distance prior P and low-rank receptive bias M = P + f(P) (LRBM).

Source: Lee et al., "Spatially-Adaptive Gradient Re-parameterization for 3D Large Kernel Optimization", ICML 2026.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..large_kernel_conv import LargeKernelConv3d
from ..layers import ChannelLayerNorm
from ..random_numbers import separate_random_numbers

Correction = Literal["gated", "additive", "free"]
CORRECTIONS: tuple[Correction, ...] = ("gated", "additive", "free")
Padding = Literal["zeros", "replicate"]
PADDINGS: tuple[Padding, ...] = ("zeros", "replicate")


def compute_distances(ks: int) -> Tensor:
    """Compute the distance ||k - c||_2 of each tap from the kernel's centre c, voxels.

    Args:
        ks: odd side of the kernel, voxels.
    Shape: returns (ks, ks, ks), float32.
    Raises:
        ValueError: ``ks`` is not odd and positive.
    """
    if ks < 1 or ks % 2 == 0:
        raise ValueError(f"ks: found {ks}, expected an odd positive number")
    offsets = torch.arange(ks, dtype=torch.float32) - ks // 2
    return torch.stack(torch.meshgrid(offsets, offsets, offsets, indexing="ij")).norm(dim=0)


def compute_distance_prior(ks: int, beta: float = 1.0) -> Tensor:
    """Compute the prior P[k] = beta / (||k - c||_2 + beta): 1 at the kernel's centre c, smallest in its corners.

    Args:
        ks: odd side of the kernel, voxels.
        beta: distance at which the prior has fallen to one half, voxels.
    Shape: returns (ks, ks, ks), float32.
    Raises:
        ValueError: ``ks`` is not odd and positive, or ``beta`` is not positive and finite.
    """
    if not 0 < beta < math.inf:
        raise ValueError(f"beta: found {beta}, expected a finite positive number")
    return beta / (compute_distances(ks) + beta)


class LRBM(nn.Module):
    """Low-rank receptive bias: the mask M = P + f(P) that multiplies a depthwise kernel, P being the distance prior.

    The generator g is a chain of ``generator_depth`` convolutions with LayerNorm and sigmoid between them. Its last
    convolution is initialised with zeros, so that training starts at the prior. The paper uses one map for all channels
    of a block, normalised over the whole map; ``per_channel`` repeats the prior and learns one map per channel,
    normalised over channels. ``correction`` chooses f:

    - "gated": f(P) = P * tanh(g(P) / sqrt(n)), n being the taps of g's last convolution; in other words
      M = 2 P * sigmoid(2 g(P) / sqrt(n)), between 0 and 2 P.
    - "additive": f(P) = g(P). A step of Adam may move M by about 170 times the learning rate (``docs/theory.md``).
    - "free": f is no function of P but one parameter per tap, initialised with zeros.

    Args:
        channels: channels of the masked kernel.
        ks: odd side of that kernel, voxels.
        learned: add f; without it, M = P.
        beta: decay distance of the prior, voxels.
        generator_depth: convolutions in g.
        generator_ks: odd side of their kernels, voxels.
        per_channel: learn one map per channel instead of one per block.
        correction: form of f.
        generator_padding: values that g's convolutions see outside the map, "zeros" or those of its border
            ("replicate").
        mask_floor: smallest value of M; None for no limit.
        learn_beta: train ``beta`` as well.
    Shape: () -> (1, 1, ks, ks, ks), or (channels, 1, ks, ks, ks) with ``per_channel``.
    Raises:
        ValueError: an even or non-positive side, ``generator_depth`` below 1, ``beta`` not positive and finite,
            ``mask_floor`` not finite, an unknown ``correction`` or ``generator_padding``.
    """

    prior: Tensor
    distances: Tensor
    floor: Tensor | None
    gain: Tensor | None

    def __init__(
        self,
        channels: int,
        ks: int,
        learned: bool = True,
        beta: float = 1.0,
        generator_depth: int = 2,
        generator_ks: int = 7,
        per_channel: bool = False,
        correction: Correction = "gated",
        generator_padding: Padding = "zeros",
        mask_floor: float | None = None,
        learn_beta: bool = False,
    ) -> None:
        super().__init__()
        if generator_depth < 1:
            raise ValueError(f"generator_depth: found {generator_depth}, expected at least 1")
        if correction not in CORRECTIONS:
            raise ValueError(f"correction: found {correction!r}, expected one of {', '.join(CORRECTIONS)}")
        if generator_padding not in PADDINGS:
            raise ValueError(f"generator_padding: found {generator_padding!r}, expected one of {', '.join(PADDINGS)}")
        if mask_floor is not None and not math.isfinite(mask_floor):
            raise ValueError(f"mask_floor: found {mask_floor}, expected a finite number")
        self.maps = channels if per_channel else 1
        # These buffers show whether the kernels of a state_dict are still to be multiplied by a mask, and by which.
        self.register_buffer("prior", compute_distance_prior(ks, beta))
        self.register_buffer("floor", None if mask_floor is None else torch.tensor(float(mask_floor)))
        self.register_buffer("distances", compute_distances(ks), persistent=False)
        self.log_beta = nn.Parameter(torch.tensor(math.log(beta))) if learn_beta else None
        generated = learned and correction != "free"
        make_conv = LargeKernelConv3d if generator_padding == "zeros" else ReplicatePaddedConv3d
        sizes = generator_depth, generator_ks
        with separate_random_numbers():
            self.generator = self._make_generator(ks, *sizes, per_channel, make_conv) if generated else None
        self.free = nn.Parameter(torch.zeros(self.maps, ks, ks, ks)) if learned and not generated else None
        self.register_buffer("gain", torch.tensor(generator_ks**-1.5) if generated and correction == "gated" else None)
        replicates = torch.tensor(True) if generated and generator_padding == "replicate" else None
        self.register_buffer("replicates", replicates)

    def _make_generator(
        self, ks: int, depth: int, generator_ks: int, per_channel: bool, make_conv: type[LargeKernelConv3d]
    ) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            norm = ChannelLayerNorm(self.maps, eps=1e-5) if per_channel else nn.LayerNorm((ks, ks, ks))
            # Without a bias if the next layer normalises over the whole map, which would cancel it.
            layers += [make_conv(self.maps, generator_ks, bias=per_channel), norm, nn.Sigmoid()]
        last = make_conv(self.maps, generator_ks)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        return nn.Sequential(*layers, last)

    def forward(self) -> Tensor:
        # The mask scales every weight, so it is computed in the parameters' precision even under autocast.
        with torch.autocast(self.prior.device.type, enabled=False):
            prior = self.compute_prior().expand(1, self.maps, -1, -1, -1)
            mask = prior if (correction := self.correct(prior)) is None else prior + correction
            mask = mask if self.floor is None else mask.clamp(min=self.floor)
            return mask.transpose(0, 1)  # (1, maps, ...) -> (maps, 1, ...)

    def compute_prior(self) -> Tensor:
        """Compute the prior P with the current beta, (ks, ks, ks)."""
        if self.log_beta is None:
            return self.prior
        beta = self.log_beta.exp()
        return beta / (self.distances + beta)

    def correct(self, prior: Tensor) -> Tensor | None:
        """Compute the correction f(P), (1, maps, ks, ks, ks) -> the same shape; None for a fixed mask."""
        if self.free is not None:
            return self.free
        if self.generator is None:
            return None
        generated = self.generator(prior)
        return generated if self.gain is None else prior * torch.tanh(self.gain * generated)


class ReplicatePaddedConv3d(LargeKernelConv3d):
    """``LargeKernelConv3d`` that sees the border's values outside the grid, where the latter sees zeros."""

    def forward(self, input: Tensor) -> Tensor:
        margin = self.kernel_size[0] // 2
        convolved = super().forward(F.pad(input, (margin,) * 6, mode="replicate"))
        for axis in (-3, -2, -1):
            convolved = convolved.narrow(axis, margin, input.shape[axis])
        return convolved

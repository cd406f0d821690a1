"""Block of 3D UX-Net, whose kernel may have Rep3D's mask.

Source: Lee et al., "3D UX-Net", ICLR 2023, and the block of its published code, which is simpler than its figure.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ChannelLayerNorm
from ..Rep3D.rep3d_encoder import MaskedKernelBlock, MaskMode

EXPANSION = 4
LAYER_SCALE = 1e-6


class ux_block(MaskedKernelBlock):
    """Depthwise convolution, channel LayerNorm, depthwise expansion and reduction with GELU, layer scale, residual.

    Args:
        dim: channels.
        ks: odd side of the kernel, voxels.
        mask: "none" as published, "learned" (LRBM) or "fixed" (the prior alone).
        deploy: build the folded form.
        lrbm_options: arguments of ``LRBM`` after ``learned``.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: unknown ``mask``, a size that ``LRBM`` or the convolution does not accept, or an option that the
            mask does not use.
    """

    def __init__(
        self, dim: int, ks: int = 7, mask: MaskMode = "none", deploy: bool = False, **lrbm_options: Any
    ) -> None:
        super().__init__(dim, ks, mask, deploy, bias=True, **lrbm_options)
        self.norm = ChannelLayerNorm(dim)
        # Pointwise only in name: the published code groups these convolutions by channel.
        self.pwconv1 = nn.Conv3d(dim, EXPANSION * dim, kernel_size=1, groups=dim)
        self.pwconv2 = nn.Conv3d(EXPANSION * dim, dim, kernel_size=1, groups=dim)
        self.gamma = nn.Parameter(torch.full((dim,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        update = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.convolve(x)))))
        return x + self.gamma[:, None, None, None] * update

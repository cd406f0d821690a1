"""Layers that several networks use and PyTorch does not have."""

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (N, C, D, H, W), voxel by voxel; eps 1e-6 as in 3D UX-Net."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        channels_last = input.permute(0, 2, 3, 4, 1)  # (N, C, D, H, W) -> (N, D, H, W, C)
        normalised = F.layer_norm(channels_last, self.normalized_shape, self.weight, self.bias, self.eps)
        return normalised.permute(0, 4, 1, 2, 3)

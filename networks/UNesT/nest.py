"""Encoder of UNesT: three levels of transformer layers with attention within non-overlapping blocks of voxels.

Source: Zhang et al., "Nested Hierarchical Transformer", AAAI 2022 (NesT); in 3D Yu et al., "UNesT", Medical Image
Analysis 2023. Names, shapes and numbers are from the official code.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from monai.networks.layers.drop_path import DropPath
from torch import Tensor, nn

from ..layers import ChannelLayerNorm

PATCH = 4  # side and stride of the embedding, voxels
BLOCKS = (4, 2, 1)  # blocks along each axis, by level: a block keeps its size in tokens, so it doubles in voxels


class BlockAttention(nn.Module):
    """Multi-head self-attention among the tokens of each block.

    Args:
        dim: channels.
        num_heads: heads, a divisor of ``dim``.
    Shape: (N, blocks, tokens, dim) -> (N, blocks, tokens, dim).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # Fused attention kernels accept four dimensions, so blocks are merged into the batch.
        split = "n blocks tokens (three heads c) -> three (n blocks) heads tokens c"
        query, key, value = rearrange(self.qkv(x), split, three=3, heads=self.num_heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        # Parity: heads are split head-major but merged with the head as the fastest axis, as official weights expect.
        merged = "(n blocks) heads tokens c -> n blocks tokens (c heads)"
        return self.proj(rearrange(attended, merged, blocks=x.shape[1]))


class TransformerLayer(nn.Module):
    """Pre-normalised block attention and MLP of ratio 4, each a residual branch under stochastic depth.

    Args:
        dim: channels.
        num_heads: heads, a divisor of ``dim``.
        drop_path: probability with which a training sample skips a branch.
    Shape: (N, blocks, tokens, dim) -> (N, blocks, tokens, dim).
    """

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = BlockAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim)))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class NestLevel(nn.Module):
    """Down-sampling (not in the first level), then transformer layers on the map, divided into a grid of blocks.

    Args:
        in_dim: channels of the input; None in the first level, which has no down-sampling.
        dim: channels of the level.
        num_heads: heads, a divisor of ``dim``.
        drop_paths: rate of stochastic depth of each layer.
        blocks: blocks along each axis.
        edges: sides (D, H, W) of a block, tokens.
    Shape: (N, in_dim, D, H, W) -> (N, dim, D / 2, H / 2, W / 2), or the same size in the first level.
    """

    def __init__(
        self,
        in_dim: int | None,
        dim: int,
        num_heads: int,
        drop_paths: Sequence[float],
        blocks: int,
        edges: tuple[int, int, int],
    ) -> None:
        super().__init__()
        depth, height, width = edges
        self.grid = {"gd": blocks, "gh": blocks, "gw": blocks}
        self.edges = {"d": depth, "h": height, "w": width}
        self.pos_embed = nn.Parameter(torch.zeros(1, blocks**3, depth * height * width, dim))
        self.pool: nn.Module = nn.Identity()
        if in_dim is not None:
            conv = nn.Conv3d(in_dim, dim, kernel_size=3, padding=1)
            pool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
            self.pool = nn.Sequential(OrderedDict(conv=conv, norm=ChannelLayerNorm(dim, eps=1e-6), pool=pool))
        self.transformer_encoder = nn.Sequential(*(TransformerLayer(dim, num_heads, rate) for rate in drop_paths))

    def forward(self, x: Tensor) -> Tensor:
        voxels, tokens = "n c (gd d) (gh h) (gw w)", "n (gd gh gw) (d h w) c"
        x = rearrange(self.pool(x), f"{voxels} -> {tokens}", **self.grid)
        x = self.transformer_encoder(x + self.pos_embed)
        return rearrange(x, f"{tokens} -> {voxels}", **self.grid, **self.edges)


class NestEncoder(nn.Module):
    """Patch embedding and three levels at 1/4, 1/8 and 1/16 of the input's resolution, with 4^3, 2^3 and 1 blocks.

    Args:
        in_chans: input channels.
        roi_size: (D, H, W) of the input, voxels; each side divisible by 16.
        embed_dim: channels per level.
        depths: transformer layers per level.
        num_heads: heads per level, divisors of ``embed_dim``.
        drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0 in the first.
    Shape: (N, in_chans, *roi_size) -> [embedding with embed_dim[0] channels, outputs of the levels with embed_dim[i]
        channels], and the last of them normalised.
    """

    def __init__(
        self,
        in_chans: int,
        roi_size: Sequence[int],
        embed_dim: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        embedding = nn.Conv3d(in_chans, embed_dim[0], kernel_size=PATCH, stride=PATCH)
        self.patch_embed = nn.Sequential(OrderedDict(proj=embedding))
        depth, height, width = (side // (PATCH * BLOCKS[0]) for side in roi_size)
        rates = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.levels = nn.ModuleList(
            NestLevel(in_dim, dim, heads, [next(rates) for _ in range(layers)], blocks, (depth, height, width))
            for in_dim, dim, heads, layers, blocks in zip(
                (None, *embed_dim[:-1]), embed_dim, num_heads, depths, BLOCKS, strict=True
            )
        )
        self.norm = ChannelLayerNorm(embed_dim[-1], eps=1e-6)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = [self.patch_embed(x)]
        for level in self.levels:
            maps.append(level(maps[-1]))
        return maps, self.norm(maps[-1])


def _init_weights(module: nn.Module) -> None:
    """Initialise weights and position embeddings by a truncated normal with std 0.02, biases with zeros."""
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
    elif isinstance(module, NestLevel):
        nn.init.trunc_normal_(module.pos_embed, std=0.02)

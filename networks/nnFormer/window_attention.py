"""nnFormer's transformer block: attention within cubic windows, shifted in every second block."""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from monai.networks.layers.drop_path import DropPath
from torch import Tensor, nn

Grid = tuple[int, int, int]


def triple(numbers: Iterable[int]) -> Grid:
    """Convert three numbers (D, H, W) to a tuple of known length, for the type checker."""
    depth, height, width = numbers
    return depth, height, width


def _split(x: Tensor, window: int) -> Tensor:
    """Divide (N, D, H, W, C), sides divisible by ``window``, into (N, windows, window^3 tokens, C)."""
    return rearrange(x, "n (d i) (h j) (w k) c -> n (d h w) (i j k) c", i=window, j=window, k=window)


def _relative_position_index(window: int) -> Tensor:
    """Compute the row of the bias table for each pair (query, key) of a window's tokens."""
    offsets = torch.as_tensor(np.indices((window,) * 3).reshape(3, -1))
    depth, height, width = offsets[:, :, None] - offsets[:, None, :] + window - 1
    # Parity: a unique row for each offset would need (2 window - 1)^2 as the first factor. With the official factor,
    # different offsets share rows and most of the table is never read, but official weights were trained with it.
    return depth * (3 * window - 1) + height * (2 * window - 1) + width


def _shift_mask(padded: Grid, window: int, shift: int) -> Tensor:
    """Build the mask (windows, 1, tokens, tokens) that, added to attention, separates tokens joined by the shift."""
    depth, height, width = (np.digitize(np.arange(side), (side - window, side - shift)) for side in padded)
    region = 9 * depth[:, None, None] + 3 * height[:, None] + width
    regions = _split(torch.as_tensor(region)[None, ..., None], window)[0]  # (windows, tokens, 1)
    # Parity: -100 instead of minus infinity.
    return -100.0 * (regions != regions.transpose(1, 2)).float()[:, None]


class WindowAttention(nn.Module):
    """Multi-head attention within cubic windows, with a bias that depends on the relative position.

    A window larger than the grid's smallest side is reduced to that side. The grid is padded with zeros at the end of
    each axis to whole windows; padding takes part in the attention like any token.

    Args:
        grid: (D, H, W) of the tokens.
        dim: channels.
        heads: attention heads.
        window: side of the windows, tokens.
        shifted: shift the windows cyclically by half their side, unless one spans the grid's smallest side.
        cross: use the input itself, without a projection, as queries, and take keys and values from ``context``.
    Shape: x, and ``context`` if ``cross``: (N, D, H, W, dim) -> (N, D, H, W, dim).
    """

    relative_position_index: Tensor
    shift_mask: Tensor | None

    def __init__(self, grid: Grid, dim: int, heads: int, window: int, shifted: bool, cross: bool) -> None:
        super().__init__()
        self.heads, self.cross = heads, cross
        self.window = min(window, *grid)
        self.shift = self.window // 2 if shifted and self.window < min(grid) else 0
        self.padding = triple(-side % self.window for side in grid)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * self.window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_position_index(self.window))
        padded = triple(side + pad for side, pad in zip(grid, self.padding, strict=True))
        mask = _shift_mask(padded, self.window, self.shift) if self.shift else None
        self.register_buffer("shift_mask", mask, persistent=False)
        if cross:
            self.kv = nn.Linear(dim, 2 * dim)
        else:
            self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        query, key, value = (
            rearrange(tokens, "n w t (h c) -> n w h t c", h=self.heads) for tokens in self._project(x, context)
        )
        scale = query.shape[-1] ** -0.5
        attention = ((query * scale) @ key.transpose(-2, -1) + self._bias()).softmax(dim=-1)
        mixed = rearrange(attention @ value, "n w h t c -> n w t (h c)")
        return self._merge(self.proj(mixed), x.shape[1:4])

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Compute queries, keys and values, each (N, windows, tokens, dim)."""
        windows = self._partition(x)
        if not self.cross:
            return self.qkv(windows).chunk(3, dim=-1)
        assert context is not None
        return (windows, *self.kv(self._partition(context)).chunk(2, dim=-1))

    def _bias(self) -> Tensor:
        """Return the bias (heads, tokens, tokens), or (windows, heads, tokens, tokens) if the windows are shifted."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return bias if self.shift_mask is None else bias + self.shift_mask

    def _partition(self, x: Tensor) -> Tensor:
        """Divide (N, D, H, W, C) into (N, windows, tokens, C)."""
        depth, height, width = self.padding
        x = F.pad(x, (0, 0, 0, width, 0, height, 0, depth))
        if self.shift:
            x = x.roll((-self.shift,) * 3, dims=(1, 2, 3))
        return _split(x, self.window)

    def _merge(self, windows: Tensor, grid: torch.Size) -> Tensor:
        """Merge (N, windows, tokens, C) into (N, D, H, W, C), the inverse of ``_partition``."""
        side = self.window
        d, h, w = ((length + pad) // side for length, pad in zip(grid, self.padding, strict=True))
        x = rearrange(windows, "n (d h w) (i j k) c -> n (d i) (h j) (w k) c", d=d, h=h, w=w, i=side, j=side, k=side)
        if self.shift:
            x = x.roll((self.shift,) * 3, dims=(1, 2, 3))
        return x[:, : grid[0], : grid[1], : grid[2]]


class WindowBlock(nn.Module):
    """Window attention and MLP, both pre-norm and residual with stochastic depth.

    Args:
        grid, dim, heads, window, shifted, cross: see ``WindowAttention``; with ``cross`` the block attends to a skip
            map and adds it to the residual path.
        drop_path: probability with which training skips a branch, per sample.
    Shape: x, and ``skip`` if ``cross``: (N, dim, D, H, W) -> (N, dim, D, H, W).
    """

    def __init__(
        self, grid: Grid, dim: int, heads: int, window: int, shifted: bool, cross: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(grid, dim, heads, window, shifted, cross)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim)))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = x.permute(0, 2, 3, 4, 1)  # (N, C, D, H, W) -> (N, D, H, W, C)
        if skip is None:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        else:
            skip = skip.permute(0, 2, 3, 4, 1)
            x = x + skip + self.drop_path(self.attn(self.norm1(x), self.norm1(skip)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 4, 1, 2, 3)

"""nnFormer: shifted-window transformer encoder and decoder with convolutional embedding, down- and up-sampling.

Source: Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE TIP 2023; state_dict
and numerics are those of the official code's "synapse" variant, in the copy that 3D UX-Net (ICLR 2023) ran at 96^3.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from ..base import InputSizes, Logits, SegmentationNetwork, check_all_positive, check_positive
from ..layers import ChannelLayerNorm
from .window_attention import Grid, WindowBlock, triple

EPS = 1e-5  # of the layer normalisations; PyTorch's default, which the blocks use


class _Stage(NamedTuple):
    """Settings that encoder and decoder share at one resolution."""

    grid: Grid
    dim: int
    depth: int
    heads: int
    window: int

    def make_blocks(self, drop_paths: Sequence[float], cross_first: bool = False) -> nn.Sequential:
        """Build one block per rate of stochastic depth; every second one has shifted windows."""
        return nn.Sequential(
            *(
                WindowBlock(self.grid, self.dim, self.heads, self.window, i % 2 == 1, cross_first and i == 0, rate)
                for i, rate in enumerate(drop_paths)
            )
        )


def _drop_path_rates(stages: Sequence[_Stage], last: float) -> list[list[float]]:
    """Compute rates of stochastic depth for each stage's blocks, rising linearly from 0 to ``last``."""
    rates = iter(np.linspace(0, last, sum(stage.depth for stage in stages)).tolist())
    return [list(itertools.islice(rates, stage.depth)) for stage in stages]


def _make_patch_embedding(in_chans: int, dim: int, patch_size: Grid) -> nn.Sequential:
    """Build (N, in_chans, D, H, W) -> (N, dim, D / patch_size[0], H / patch_size[1], W / patch_size[2])."""
    # A side of 4 is divided into two strides of 2; a side of 2 is the stride of the first convolution.
    first = triple(min(side, 2) for side in patch_size)
    second = triple(side // stride for side, stride in zip(patch_size, first, strict=True))

    def conv(chans: int, width: int, stride: Grid = (1, 1, 1)) -> nn.Conv3d:
        return nn.Conv3d(chans, width, kernel_size=3, stride=stride, padding=1)

    half = dim // 2
    proj1 = OrderedDict(
        conv1=conv(in_chans, half, first),
        act1=nn.GELU(),
        norm1=ChannelLayerNorm(half, EPS),
        conv2=conv(half, half),
        act2=nn.GELU(),
        norm2=ChannelLayerNorm(half, EPS),
    )
    proj2 = OrderedDict(
        conv1=conv(half, dim, second), act1=nn.GELU(), norm1=ChannelLayerNorm(dim, EPS), conv2=conv(dim, dim)
    )
    norm = ChannelLayerNorm(dim, EPS)
    return nn.Sequential(OrderedDict(proj1=nn.Sequential(proj1), proj2=nn.Sequential(proj2), norm=norm))


class _EncoderLayer(nn.Module):
    """Blocks, then a down-sampling that doubles the channels; the last layer has no down-sampling."""

    def __init__(self, stage: _Stage, drop_paths: Sequence[float], last: bool) -> None:
        super().__init__()
        self.blocks = stage.make_blocks(drop_paths)
        self.downsample: nn.Module = nn.Identity()
        if not last:
            reduction = nn.Conv3d(stage.dim, 2 * stage.dim, kernel_size=3, stride=2, padding=1)
            self.downsample = nn.Sequential(
                OrderedDict(act=nn.GELU(), norm=ChannelLayerNorm(stage.dim, EPS), reduction=reduction)
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(x)
        return x, self.downsample(x)


class _Encoder(nn.Module):
    """Encoder: (N, in_chans, D, H, W) -> a normalised map for each stage, finest first."""

    def __init__(self, in_chans: int, patch_size: Grid, stages: Sequence[_Stage], drop_path_rate: float) -> None:
        super().__init__()
        self.patch_embed = _make_patch_embedding(in_chans, stages[0].dim, patch_size)
        self.layers = nn.ModuleList(
            _EncoderLayer(stage, rates, last=stage is stages[-1])
            for stage, rates in zip(stages, _drop_path_rates(stages, drop_path_rate), strict=True)
        )
        for i, stage in enumerate(stages):
            self.add_module(f"norm{i}", ChannelLayerNorm(stage.dim, EPS))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        maps = []
        for i, layer in enumerate(self.layers):
            output, x = layer(x)
            maps.append(self.get_submodule(f"norm{i}")(output))
        return maps


class _DecoderLayer(nn.Module):
    """Up-sampling that halves the channels, a block that attends to the skip map, then blocks as in the encoder."""

    def __init__(self, stage: _Stage, drop_paths: Sequence[float]) -> None:
        super().__init__()
        up = nn.ConvTranspose3d(2 * stage.dim, stage.dim, kernel_size=2, stride=2)
        self.Upsample = nn.Sequential(OrderedDict(norm=ChannelLayerNorm(2 * stage.dim, EPS), up=up))
        self.blocks = stage.make_blocks(drop_paths, cross_first=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        merge, *blocks = self.blocks
        x = merge(self.Upsample(x), skip)
        for block in blocks:
            x = block(x)
        return x


class _Decoder(nn.Module):
    """Decoder: the encoder's maps -> the decoded map of each stage, finest first."""

    def __init__(self, stages: Sequence[_Stage], drop_path_rate: float) -> None:
        super().__init__()
        upwards = stages[::-1]  # in execution order: stochastic depth grows towards the finest stage
        layers = [
            _DecoderLayer(stage, rates)
            for stage, rates in zip(upwards, _drop_path_rates(upwards, drop_path_rate), strict=True)
        ]
        self.layers = nn.ModuleList(reversed(layers))  # official keys count from the finest

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        *skips, x = maps
        decoded: list[Tensor] = []
        for layer, skip in zip(reversed(self.layers), reversed(skips), strict=True):
            x = layer(x, skip)
            decoded.insert(0, x)
        return decoded


class nnFormer(SegmentationNetwork):
    """Segmentation network: shifted-window transformers in a U-shape, skips merged by cross attention.

    149.33 M parameters for one channel and 16 classes. Parity: as in the official code, whose weights depend on it, the
    relative-position index maps different offsets to the same entry of the bias table (the factor of the slowest axis
    is 3 w - 1; a unique index needs (2 w - 1)^2), and most entries are never read.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        roi_size: (D, H, W) of the inputs, voxels; windows and their masks are built for it.
        embed_dim: channels of the first stage, doubled from stage to stage.
        depths: blocks in each of the four stages; the decoder repeats those of the first three.
        num_heads: attention heads in each stage.
        patch_size: (D, H, W) of the voxels per token of the first stage, each 1, 2 or 4; (4, 4, 4) is the official
            "tumor" variant.
        window_sizes: side of each stage's cubic windows, tokens; a window larger than the smallest side of its grid is
            reduced to that side and not shifted.
        drop_path_rate: stochastic depth of the last block of encoder and decoder; rates rise linearly from 0.
    Shape: (N, in_chans, *roi_size) -> logits (N, out_chans, *roi_size); the sides of ``roi_size`` are divisible by
        those of ``patch_size`` times 8.
    Raises:
        ValueError: an invalid argument, or an input with other channels or sides.
    """

    stem_prefixes = ("model_down.patch_embed.proj1.conv1.weight",)
    head_prefixes = ("final.",)
    encoder_prefixes = (
        ("model_down.patch_embed.",),
        *((f"model_down.layers.{stage}.", f"model_down.norm{stage}.") for stage in range(4)),
    )
    ignored_prefixes: tuple[str, ...] = ("final.1.", "final.2.")  # the coarser heads, for deep supervision

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        roi_size: Sequence[int] = (96, 96, 96),
        embed_dim: int = 192,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (6, 12, 24, 48),
        patch_size: Sequence[int] = (2, 4, 4),
        window_sizes: Sequence[int] = (4, 4, 8, 4),
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        check_positive(in_chans=in_chans, out_chans=out_chans)
        check_all_positive(4, depths=depths, num_heads=num_heads, window_sizes=window_sizes)
        if embed_dim < 2 or embed_dim % 2:
            raise ValueError(f"embed_dim: found {embed_dim}, expected an even positive number")
        if len(patch_size) != 3 or not set(patch_size) <= {1, 2, 4}:
            raise ValueError(f"patch_size: found {tuple(patch_size)}, expected three of 1, 2 and 4")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate: found {drop_path_rate}, expected at least 0 and less than 1")
        dims = tuple(embed_dim * 2**i for i in range(4))
        if any(dim % heads for dim, heads in zip(dims, num_heads, strict=True)):
            raise ValueError(f"num_heads: found {tuple(num_heads)}, expected divisors of the channels {dims}")

        patch = triple(patch_size)
        self.in_chans, self.out_chans = in_chans, out_chans
        # Three down-samplings by 2 follow the patch embedding.
        self.input_sizes = InputSizes(triple(8 * side for side in patch), least_coarse=1, built_for=tuple(roi_size))
        stages = [
            _Stage(triple(side // (length * 2**i) for side, length in zip(roi_size, patch, strict=True)), *numbers)
            for i, numbers in enumerate(zip(dims, depths, num_heads, window_sizes, strict=True))
        ]
        self.model_down = _Encoder(in_chans, patch, stages, drop_path_rate)
        self.decoder = _Decoder(stages[:-1], drop_path_rate)
        self.final = nn.ModuleList([_make_head(dims[0], out_chans, patch)])

    def forward(self, x: Tensor) -> Logits:
        maps = self.decoder(self.model_down(x))
        if self.deep_supervision and self.training:
            return tuple(head(grid) for head, grid in zip(self.final, maps, strict=True))
        return self.final[0](maps[0])

    def enable_deep_supervision(self) -> None:
        """Create the heads of the two coarser stages, both of which the official training uses."""
        finest = self.final[0].get_submodule("up")
        assert isinstance(finest, nn.ConvTranspose3d)
        patch = triple(finest.kernel_size)
        self.final.extend(_make_head(finest.in_channels * 2**stage, self.out_chans, patch) for stage in (1, 2))
        self.deep_supervision = True
        self.ignored_prefixes = ()


def _make_head(dim: int, out_chans: int, patch: Grid) -> nn.Sequential:
    """Build (N, dim, D, H, W) tokens -> logits (N, out_chans, D * patch[0], H * patch[1], W * patch[2])."""
    return nn.Sequential(OrderedDict(up=nn.ConvTranspose3d(dim, out_chans, kernel_size=patch, stride=patch)))

"""TransBTS: residual encoder, transformer over every voxel of the grid at 1/8, decoder with concatenated skips.

Source: Wang et al., "TransBTS: Multimodal Brain Tumor Segmentation Using Transformer", MICCAI 2021. Written from a
description in prose; the modules have the official names, so that official weights load.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..base import InputSizes, SegmentationNetwork, check_positive

GROUPS = 8  # of every group normalisation
BLOCKS = (1, 2, 2, 4)  # residual blocks in each of the encoder's levels


class Residual(nn.Sequential):
    """Sequence of modules with a residual connection around it."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def conv3(in_chans: int, out_chans: int, stride: int = 1) -> nn.Conv3d:
    """Build a convolution with a 3^3 kernel that keeps the size, or halves it with stride 2."""
    return nn.Conv3d(in_chans, out_chans, kernel_size=3, stride=stride, padding=1)


def norm_relu_conv_twice(channels: int) -> OrderedDict[str, nn.Module]:
    """Build the layers of an encoder block; the official names "bn" are of group normalisations."""
    return OrderedDict(
        bn1=nn.GroupNorm(GROUPS, channels),
        relu1=nn.ReLU(),
        conv1=conv3(channels, channels),
        bn2=nn.GroupNorm(GROUPS, channels),
        relu2=nn.ReLU(),
        conv2=conv3(channels, channels),
    )


def conv_norm_relu_twice(in_chans: int, out_chans: int) -> OrderedDict[str, nn.Module]:
    """Build the layers of a decoder block."""
    return OrderedDict(
        conv1=conv3(in_chans, out_chans),
        bn1=nn.BatchNorm3d(out_chans),
        relu1=nn.ReLU(),
        conv2=conv3(out_chans, out_chans),
        bn2=nn.BatchNorm3d(out_chans),
        relu2=nn.ReLU(),
    )


class Encoder(nn.Module):
    """Stem and four levels of pre-activated residual blocks, from full resolution to 1/8.

    Args:
        in_chans: input channels.
        widths: channels of the levels.
        stem_dropout: rate at which whole channels of the stem are dropped in training.
    Shape: (N, in_chans, D, H, W) -> (N, widths[3], D / 8, H / 8, W / 8), and
        [(N, widths[i], D / 2^i, H / 2^i, W / 2^i) for i = 0, 1, 2].
    """

    def __init__(self, in_chans: int, widths: Sequence[int], stem_dropout: float) -> None:
        super().__init__()
        # The official stem drops channels in evaluation too, which makes predictions unrepeatable. A dropout module
        # does so in training only.
        self.InitConv = nn.Sequential(OrderedDict(conv=conv3(in_chans, widths[0]), dropout=nn.Dropout3d(stem_dropout)))
        for level, (width, blocks) in enumerate(zip(widths, BLOCKS, strict=True), start=1):
            if level > 1:
                down = conv3(widths[level - 2], width, stride=2)
                self.add_module(f"EnDown{level - 1}", nn.Sequential(OrderedDict(conv=down)))
            for block in range(1, blocks + 1):
                name = f"EnBlock{level}_{block}" if blocks > 1 else f"EnBlock{level}"
                self.add_module(name, Residual(norm_relu_conv_twice(width)))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for name, module in self.named_children():
            if name.startswith("EnDown"):
                skips.append(x)
            x = module(x)
        return x, skips


class PositionEncoding(nn.Module):
    """Learned vector added to each token, initialised with zeros.

    Shape: (N, tokens, dim) -> (N, tokens, dim).
    """

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position_embeddings


class SelfAttention(nn.Module):
    """Multi-head self-attention with dropout on the attention weights and on the output.

    Shape: (N, tokens, dim) -> (N, tokens, dim).
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(self.qkv(x), "n t (qkv h c) -> qkv n h t c", qkv=3, h=self.num_heads)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.dropout(self.proj(rearrange(attended, "n h t c -> n t (h c)")))


class Transformer(nn.Module):
    """Pre-norm residual layers of attention and perceptron, without a normalisation at the end.

    Shape: (N, tokens, dim) -> (N, tokens, dim).
    """

    def __init__(self, dim: int, num_heads: int, num_layers: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential()
        for _ in range(num_layers):
            # Parity: the official code has an extra dropout after the attention, which already ends with one.
            attention = OrderedDict(
                norm=nn.LayerNorm(dim), fn=SelfAttention(dim, num_heads, dropout), dropout=nn.Dropout(dropout)
            )
            layers = (nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim))
            perceptron = nn.Sequential(OrderedDict(net=nn.Sequential(*layers, nn.Dropout(dropout))))
            for branch in (attention, OrderedDict(norm=nn.LayerNorm(dim), fn=perceptron)):
                self.net.append(Residual(OrderedDict(fn=nn.Sequential(branch))))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class UpBlock(nn.Module):
    """Up-sampling that halves the channels, doubles the sides, and mixes the result with a skip.

    Shape: (N, 2 * width, D, H, W), (N, width, 2 * D, 2 * H, 2 * W) -> (N, width, 2 * D, 2 * H, 2 * W).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2 * width, width, kernel_size=1)
        self.conv2 = nn.ConvTranspose3d(width, width, kernel_size=2, stride=2)
        self.conv3 = nn.Conv3d(2 * width, width, kernel_size=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv3(torch.cat((skip, self.conv2(self.conv1(x))), dim=1))


class TransBTS(SegmentationNetwork):
    """Segmentation network: convolutional encoder, transformer over the grid at 1/8, convolutional decoder.

    31.58 M parameters for one channel, 16 classes and 96^3 voxels, 0.07 M of them unused. The official code ends with a
    softmax; here the output is logits.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        roi_size: (D, H, W) of the inputs, voxels; each position of the coarse grid has its own embedding.
        base_channels: channels at full resolution; they double at 1/2, 1/4 and 1/8.
        embed_dim: length of a token.
        num_heads: attention heads.
        num_layers: transformer layers.
        mlp_dim: hidden width of their perceptrons.
        dropout: dropout rate of embedded tokens, attention weights, and outputs of attention and perceptron.
        stem_dropout: rate at which whole channels are dropped after the first convolution.
        official_keys: build the two unused modules of the official network, for its checkpoints and parameter counts.
    Shape: (N, in_chans, *roi_size) -> logits (N, out_chans, *roi_size); sides divisible by 8, not all equal to 8.
    Raises:
        ValueError: an invalid argument, or an input with other channels or sides.
    """

    # The unused linear_encoding has 8 * base_channels columns for each input channel.
    stem_prefixes = ("Unet.InitConv.conv.weight", "linear_encoding.weight")
    head_prefixes = ("endconv.",)
    encoder_prefixes = (
        ("Unet.InitConv.",),
        ("Unet.EnBlock1.",),
        *((f"Unet.EnDown{level - 1}.", f"Unet.EnBlock{level}_") for level in range(2, 5)),
        ("bn.", "conv_x.", "position_", "transformer."),
    )
    # The official network has but does not use a linear map instead of conv_x, and a norm after the transformer.
    unused_prefixes = ("linear_encoding.", "pre_head_ln.")

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        roi_size: Sequence[int] = (96, 96, 96),
        base_channels: int = 16,
        embed_dim: int = 512,
        num_heads: int = 8,
        num_layers: int = 4,
        mlp_dim: int = 4096,
        dropout: float = 0.1,
        stem_dropout: float = 0.2,
        official_keys: bool = True,
    ) -> None:
        super().__init__()
        check_positive(in_chans=in_chans, out_chans=out_chans, num_heads=num_heads)
        check_positive(num_layers=num_layers, mlp_dim=mlp_dim)
        _check_multiple("base_channels", base_channels, GROUPS)
        _check_multiple("embed_dim", embed_dim, num_heads)
        _check_rate(dropout=dropout, stem_dropout=stem_dropout)
        self.in_chans, self.out_chans = in_chans, out_chans
        self.input_sizes = InputSizes(8, least_coarse=2, built_for=tuple(roi_size))
        widths = [base_channels * 2**level for level in range(len(BLOCKS))]
        coarse = widths[-1]

        self.Unet = Encoder(in_chans, widths, stem_dropout)
        self.bn = nn.BatchNorm3d(coarse)
        self.conv_x = conv3(coarse, embed_dim)
        self.position_encoding = PositionEncoding(math.prod(roi_size) // 8**3, embed_dim)
        self.position_dropout = nn.Dropout(dropout)
        self.transformer = Transformer(embed_dim, num_heads, num_layers, mlp_dim, dropout)
        if official_keys:
            self.linear_encoding = nn.Linear(coarse * in_chans, embed_dim)
            self.pre_head_ln = nn.LayerNorm(embed_dim)

        self.Enblock8_1 = nn.Sequential(conv_norm_relu_twice(embed_dim, coarse))
        self.Enblock8_2 = Residual(conv_norm_relu_twice(coarse, coarse))
        for level, width in enumerate(widths[:-1], start=2):
            self.add_module(f"DeUp{level}", UpBlock(width))
            self.add_module(f"DeBlock{level}", Residual(conv_norm_relu_twice(width, width)))
        self.endconv = nn.Conv3d(widths[0], out_chans, kernel_size=1)
        self.freeze_unused()

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.Unet(x)
        x = self._attend(self.conv_x(F.relu(self.bn(x))))
        x = self.Enblock8_2(self.Enblock8_1(x))
        for level in range(len(BLOCKS), 1, -1):
            x = self.get_submodule(f"DeUp{level}")(x, skips[level - 2])
            x = self.get_submodule(f"DeBlock{level}")(x)
        return self.endconv(x)

    def _attend(self, grid: Tensor) -> Tensor:
        tokens = grid.flatten(2).transpose(1, 2)  # (N, C, D, H, W) -> (N, D * H * W, C)
        tokens = self.transformer(self.position_dropout(self.position_encoding(tokens)))
        return tokens.transpose(1, 2).reshape(grid.shape)


def _check_multiple(name: str, value: int, factor: int) -> None:
    if value < 1 or value % factor:
        raise ValueError(f"{name}: found {value}, expected a positive multiple of {factor}")


def _check_rate(**arguments: float) -> None:
    for name, value in arguments.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}: found {value}, expected at least 0 and less than 1")

"""UNesT: nested transformer encoder in a U-shape, with MONAI's UNETR blocks as skips and decoder."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.dynunet_block import UnetOutBlock, get_conv_layer
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from ..base import InputSizes, SegmentationNetwork, check_all_positive, check_positive
from ..large_kernel_unet import ENCODER1_STEM
from .nest import NestEncoder


class UNesT(SegmentationNetwork):
    """Segmentation network: nested transformer of three levels, convolutional skips, five up-sampling blocks.

    The defaults are UNesT-B: 87.20 M parameters for one channel and 16 classes. Position embeddings tie the network to
    one input size.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        roi_size: (D, H, W) of the inputs, voxels.
        feature_size: half the channels of the decoder's finest map and a quarter of the next one's; the others have
            ``embed_dim``.
        embed_dim: channels of the three levels.
        depths: transformer layers per level.
        num_heads: attention heads per level, divisors of ``embed_dim``.
        drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0 in the first.
    Shape: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W); (D, H, W) equal to ``roi_size``, whose sides are
        divisible by 32, not all equal to 32.
    Raises:
        ValueError: an invalid argument, or an input with other channels or sides.
    Source: Yu et al., "UNesT: Local Spatial Representation Learning with Hierarchical Transformer for Efficient Medical
        Segmentation", Medical Image Analysis 2023; keys, shapes and numbers from its official code (MASILab/UNesT
        75386be).
    """

    stem_prefixes = ("nestViT.patch_embed.proj.weight", *ENCODER1_STEM)
    head_prefixes = ("out.",)
    encoder_prefixes = (
        ("nestViT.patch_embed.",),
        ("nestViT.levels.0.",),
        ("nestViT.levels.1.",),
        ("nestViT.levels.2.", "nestViT.norm."),
        ("encoder10.",),  # one more halving; in SwinUNETR the block of this name keeps the grid
    )

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        roi_size: Sequence[int] = (96, 96, 96),
        feature_size: int = 16,
        embed_dim: Sequence[int] = (128, 256, 512),
        depths: Sequence[int] = (2, 2, 8),
        num_heads: Sequence[int] = (4, 8, 16),
        drop_path_rate: float = 0.5,
    ) -> None:
        super().__init__()
        check_positive(in_chans=in_chans, out_chans=out_chans, feature_size=feature_size)
        check_all_positive(3, embed_dim=embed_dim, depths=depths, num_heads=num_heads)
        if any(dim % heads for dim, heads in zip(embed_dim, num_heads, strict=True)):
            raise ValueError(f"num_heads: found {tuple(num_heads)}, expected divisors of embed_dim {tuple(embed_dim)}")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate: found {drop_path_rate}, expected a number from 0 to below 1")
        self.in_chans, self.out_chans = in_chans, out_chans
        # An instance normalisation follows the last of five halvings, and needs more than one voxel.
        self.input_sizes = InputSizes(32, least_coarse=2, built_for=tuple(roi_size))
        self.nestViT = NestEncoder(in_chans, roi_size, embed_dim, depths, num_heads, drop_path_rate)

        conv: dict[str, Any] = {"spatial_dims": 3, "kernel_size": 3, "norm_name": "instance", "res_block": True}
        widths = (2 * feature_size, 4 * feature_size, *embed_dim, 2 * embed_dim[-1])  # from fine to coarse
        self.encoder1 = UnetrBasicBlock(in_channels=in_chans, out_channels=widths[0], stride=1, **conv)
        self.encoder2 = _make_upsampling(embed_dim[0], widths[1])
        self.encoder3, self.encoder4 = (
            UnetrBasicBlock(in_channels=dim, out_channels=dim, stride=1, **conv) for dim in embed_dim[:2]
        )
        self.encoder10 = Convolution(3, widths[-2], widths[-1], strides=2, kernel_size=3, adn_ordering="AN")
        self.decoder1, self.decoder2, self.decoder3, self.decoder4, self.decoder5 = (
            UnetrUpBlock(in_channels=wide, out_channels=narrow, upsample_kernel_size=2, **conv)
            for narrow, wide in itertools.pairwise(widths)
        )
        self.out = UnetOutBlock(spatial_dims=3, in_channels=widths[0], out_channels=out_chans)

    def forward(self, x: Tensor) -> Tensor:
        (embedding, level1, level2, level3), normalised = self.nestViT(x)
        up = self.encoder10(normalised)
        up = self.decoder5(up, level3)
        up = self.decoder4(up, self.encoder4(level2))
        up = self.decoder3(up, self.encoder3(level1))
        up = self.decoder2(up, self.encoder2(embedding))
        up = self.decoder1(up, self.encoder1(x))
        return self.out(up)


def _make_upsampling(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build a transposed convolution that doubles the resolution and, for parity, one of 1^3."""
    options: dict[str, Any] = {"conv_only": True, "is_transposed": True}
    doubling = get_conv_layer(3, in_channels, out_channels, 2, 2, **options)
    mixing = get_conv_layer(3, out_channels, out_channels, 1, 1, **options)
    return nn.Sequential(OrderedDict(transp_conv_init=doubling, blocks=nn.Sequential(mixing)))

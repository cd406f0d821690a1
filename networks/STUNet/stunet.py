"""STU-Net: plain residual U-Net, scalable in depth and width.

Source: Huang et al., "STU-Net: Scalable and Transferable Medical Image Segmentation Models Empowered by Large-Scale
Supervised Pre-training", arXiv:2304.06716.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import InputSizes, Logits, SegmentationNetwork, accepts_empty_batch, check_all_positive, check_positive


class ResidualBlock(nn.Module):
    """Two 3^3 convolutions, each with affine instance norm, and a shortcut; LeakyReLU between them and after the sum.

    Args:
        in_chans: input channels.
        out_chans: output channels.
        stride: (D, H, W) stride of the first convolution and of the shortcut.
        project: use a 1^3 convolution as shortcut instead of the identity.
    Shape: (N, in_chans, D, H, W) -> (N, out_chans, D / stride[0], H / stride[1], W / stride[2]).
    """

    def __init__(self, in_chans: int, out_chans: int, stride: Sequence[int] = (1, 1, 1), project: bool = False) -> None:
        super().__init__()
        step = (stride[0], stride[1], stride[2])
        self.conv1 = nn.Conv3d(in_chans, out_chans, kernel_size=3, stride=step, padding=1)
        self.norm1 = nn.InstanceNorm3d(out_chans, affine=True)
        self.conv2 = nn.Conv3d(out_chans, out_chans, kernel_size=3, padding=1)
        self.norm2 = nn.InstanceNorm3d(out_chans, affine=True)
        self.conv3 = nn.Conv3d(in_chans, out_chans, kernel_size=1, stride=step) if project else None
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.conv3 is None else self.conv3(x)
        x = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(x)) + shortcut)


class Upsample(nn.Module):
    """1^3 convolution to the skip's width, then nearest interpolation.

    The specification interpolates first; the two commute, and in this order the convolution runs over fewer voxels.

    Args:
        in_chans: input channels.
        out_chans: output channels.
        stride: (D, H, W) factors.
    Shape: (N, in_chans, D, H, W) -> (N, out_chans, D * stride[0], H * stride[1], W * stride[2]).
    """

    def __init__(self, in_chans: int, out_chans: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_chans, out_chans, kernel_size=1)
        self.stride = tuple(float(step) for step in stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=self.stride, mode="nearest")


class STUNet(SegmentationNetwork):
    """Segmentation network: six residual stages, five up-sampling stages, a 1^3 head.

    14.55 M parameters by default, with 14 classes; ``networks.NETWORKS`` has the arguments of all published sizes. The
    heads of the four coarser stages serve deep supervision; without it they are kept for the official checkpoints,
    unused and frozen.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        feat_size: channels of the six stages, finest first.
        depths: residual blocks of the six stages, finest first, or one number for all; a decoder stage has as many as
            the encoder stage at its resolution.
        strides: (D, H, W) strides between the six stages, finest first, as in nnU-Net's plan.
    Shape: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W); D, H and W are divisible by the product of their
        strides, and at least one of them is larger than it.
    Raises:
        ValueError: an invalid argument, or an input with other channels or sides.
    Source: Huang et al., "STU-Net", arXiv:2304.06716.
    """

    stem_prefixes = ("conv_blocks_context.0.0.conv1.weight", "conv_blocks_context.0.0.conv3.weight")
    head_prefixes = ("seg_outputs.",)
    encoder_prefixes = tuple((f"conv_blocks_context.{stage}.",) for stage in range(6))

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        feat_size: Sequence[int] = (16, 32, 64, 128, 256, 256),
        depths: Sequence[int] | int = 1,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * 5,
    ) -> None:
        super().__init__()
        depths = (depths,) * 6 if isinstance(depths, int) else depths
        _check_arguments(in_chans, out_chans, feat_size, depths, strides)
        self.in_chans, self.out_chans = in_chans, out_chans
        depth, height, width = (math.prod(steps) for steps in zip(*strides, strict=True))
        # The coarsest instance normalisation needs more than one voxel.
        self.input_sizes = InputSizes(depth if depth == height == width else (depth, height, width), least_coarse=2)

        widths = itertools.pairwise((in_chans, *feat_size))
        self.conv_blocks_context = nn.ModuleList(
            _make_stage(narrow, wide, blocks, stride)
            for (narrow, wide), blocks, stride in zip(widths, depths, ((1, 1, 1), *strides), strict=True)
        )
        # The decoder runs from the second coarsest stage to the finest.
        widths = itertools.pairwise(feat_size[::-1])
        self.upsample_layers = nn.ModuleList(
            Upsample(wide, narrow, stride) for (wide, narrow), stride in zip(widths, strides[::-1], strict=True)
        )
        self.conv_blocks_localization = nn.ModuleList(
            _make_stage(2 * dim, dim, blocks) for dim, blocks in zip(feat_size[-2::-1], depths[-2::-1], strict=True)
        )
        self.seg_outputs = nn.ModuleList(nn.Conv3d(dim, out_chans, kernel_size=1) for dim in feat_size[-2::-1])
        self.apply(_init_convolution)
        self.unused_prefixes = tuple(f"seg_outputs.{i}." for i in range(len(self.seg_outputs) - 1))
        self.freeze_unused()

    @accepts_empty_batch
    def forward(self, x: Tensor) -> Logits:
        skips = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            skips.append(x)
        skips.pop()
        deep = self.deep_supervision and self.training
        logits = []
        stages = zip(self.upsample_layers, self.conv_blocks_localization, self.seg_outputs, strict=True)
        for upsample, stage, head in stages:
            x = stage(torch.cat((upsample(x), skips.pop()), dim=1))
            if deep:
                logits.append(head(x))
        return tuple(logits[:0:-1]) if deep else self.seg_outputs[-1](x)

    def enable_deep_supervision(self) -> None:
        """Train the heads of the decoder's stages but the coarsest, to which nnU-Net gives the weight 0."""
        self.deep_supervision = True
        self.unused_prefixes = ("seg_outputs.0.",)
        self.seg_outputs[1:].requires_grad_(True)


def _check_arguments(
    in_chans: int, out_chans: int, feat_size: Sequence[int], depths: Sequence[int], strides: Sequence[Sequence[int]]
) -> None:
    check_positive(in_chans=in_chans, out_chans=out_chans)
    check_all_positive(6, feat_size=feat_size, depths=depths)
    if len(strides) != 5 or any(len(stride) != 3 or min(stride) < 1 for stride in strides):
        raise ValueError(f"strides: found {tuple(strides)}, expected five triples (D, H, W) of positive numbers")


def _make_stage(in_chans: int, out_chans: int, depth: int, stride: Sequence[int] = (1, 1, 1)) -> nn.Sequential:
    """Build ``depth`` residual blocks, the first of which changes the channels and the resolution."""
    first = ResidualBlock(in_chans, out_chans, stride, project=True)
    return nn.Sequential(first, *(ResidualBlock(out_chans, out_chans) for _ in range(depth - 1)))


def _init_convolution(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        assert module.bias is not None
        nn.init.zeros_(module.bias)

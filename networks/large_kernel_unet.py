"""Architecture shared by 3D UX-Net, RepUX-Net and Rep3D: four-stage large-kernel encoder, skips, convolutional decoder.

The systems differ in the block of their encoder.

Source: Lee et al., "3D UX-Net", ICLR 2023; the decoder is that of UNETR (Hatamizadeh et al., WACV 2022).
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .base import InputSizes, SegmentationNetwork, check_all_positive, check_positive
from .layers import ChannelLayerNorm

# Weights of a UNETR-like network's full-resolution skip that are applied to the image.
ENCODER1_STEM = ("encoder1.layer.conv1.", "encoder1.layer.conv3.")


class LargeKernelEncoder(nn.Module):
    """Encoder of four stages at 1/2, 1/4, 1/8 and 1/16 of the input's resolution.

    Stem: 7^3 convolution, stride 2, channel LayerNorm. Between stages: channel LayerNorm, 2^3 convolution, stride 2.
    Each stage's output passes through its own channel LayerNorm.

    Args:
        in_chans: input channels.
        depths: blocks per stage.
        dims: channels per stage.
        make_block: function from the number of channels to a block.
    Shape: (N, in_chans, D, H, W) -> [(N, dims[i], D / 2^(i+1), H / 2^(i+1), W / 2^(i+1)) for each stage i].
    """

    def __init__(
        self, in_chans: int, depths: Sequence[int], dims: Sequence[int], make_block: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        stem = nn.Sequential(
            nn.Conv3d(in_chans, dims[0], kernel_size=7, stride=2, padding=3), ChannelLayerNorm(dims[0])
        )
        self.downsample_layers = nn.ModuleList([stem])
        for narrow, wide in itertools.pairwise(dims):
            down = nn.Conv3d(narrow, wide, kernel_size=2, stride=2)
            self.downsample_layers.append(nn.Sequential(ChannelLayerNorm(narrow), down))
        self.stages = nn.ModuleList(
            nn.Sequential(*(make_block(dim) for _ in range(depth))) for dim, depth in zip(dims, depths, strict=True)
        )
        for stage, dim in enumerate(dims):
            self.add_module(f"norm{stage}", ChannelLayerNorm(dim))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage, (downsample, blocks) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = blocks(downsample(x))
            features.append(self.get_submodule(f"norm{stage}")(x))
        return features


class LargeKernelUNet(SegmentationNetwork):
    """Large-kernel encoder, residual skip blocks on the image and the stages, four up-sampling blocks, 1^3 head.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        depths: blocks in each of the four stages.
        feat_size: channels of the four stages; the head is ``feat_size[0]`` wide.
        make_block: function from the number of channels to a block of the encoder.
        hidden_size: channels of the bottleneck; by default twice the last stage's.
        norm_name: MONAI normalisation of skips and decoder.
        res_block: build skip and decoder blocks as residual ones.
    Shape: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W); D, H, W divisible by 16, not all equal to 16.
    Raises:
        ValueError: an invalid argument, or an input with other channels or sides.
    """

    encoder_name: str  # the encoder's prefix in the state_dict
    head_prefixes = ("out.",)
    checkpointing = False  # affects memory and time only, so it is not part of a checkpoint

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        depths: Sequence[int],
        feat_size: Sequence[int],
        make_block: Callable[[int], nn.Module],
        hidden_size: int | None,
        norm_name: str,
        res_block: bool,
    ) -> None:
        super().__init__()
        check_all_positive(4, depths=depths, feat_size=feat_size)
        hidden_size = 2 * feat_size[-1] if hidden_size is None else hidden_size
        check_positive(in_chans=in_chans, out_chans=out_chans, hidden_size=hidden_size)
        self.in_chans, self.out_chans = in_chans, out_chans
        self.input_sizes = InputSizes(16)  # stem and three down-samplings, each by 2
        # The image enters the encoder's first convolution and the full-resolution skip.
        self.stem_prefixes = (f"{self.encoder_name}.downsample_layers.0.0.", *ENCODER1_STEM)
        self.encoder_prefixes = _stage_prefixes(self.encoder_name, len(depths))
        self.add_module(self.encoder_name, LargeKernelEncoder(in_chans, depths, feat_size, make_block))

        conv: dict[str, Any] = {"spatial_dims": 3, "kernel_size": 3, "norm_name": norm_name, "res_block": res_block}
        skips = [in_chans, *feat_size]  # the image and the four stages
        widths = [*feat_size, hidden_size]
        self.encoder1, self.encoder2, self.encoder3, self.encoder4, self.encoder5 = (
            UnetrBasicBlock(in_channels=skip, out_channels=width, stride=1, **conv)
            for skip, width in zip(skips, widths, strict=True)
        )
        self.decoder5, self.decoder4, self.decoder3, self.decoder2 = (
            UnetrUpBlock(in_channels=widths[i], out_channels=widths[i - 1], upsample_kernel_size=2, **conv)
            for i in (4, 3, 2, 1)
        )
        self.decoder1 = UnetrBasicBlock(in_channels=widths[0], out_channels=widths[0], stride=1, **conv)
        self.out = UnetOutBlock(spatial_dims=3, in_channels=widths[0], out_channels=out_chans)

    @property
    def encoder(self) -> LargeKernelEncoder:
        """Encoder, whatever its name in the state_dict."""
        encoder = self.get_submodule(self.encoder_name)
        assert isinstance(encoder, LargeKernelEncoder)
        return encoder

    def enable_checkpointing(self) -> None:
        """Keep only the inputs of the skip and decoder blocks; the backward pass recomputes what is inside them.

        Raises:
            ValueError: a batch normalisation in skips or decoder, which would count each batch twice.
        """
        for name, module in self.named_modules():
            if isinstance(module, _BatchNorm) and not name.startswith(f"{self.encoder_name}."):
                raise ValueError(f"{name}: found batch normalisation, expected one without running statistics")
        self.checkpointing = True

    def forward(self, x: Tensor) -> Tensor:
        run = partial(checkpoint, use_reentrant=False) if self.checkpointing and torch.is_grad_enabled() else _call
        stage1, stage2, stage3, stage4 = self.encoder(x)
        up = run(self.decoder5, run(self.encoder5, stage4), run(self.encoder4, stage3))
        up = run(self.decoder4, up, run(self.encoder3, stage2))
        up = run(self.decoder3, up, run(self.encoder2, stage1))
        up = run(self.decoder2, up, run(self.encoder1, x))
        return self.out(run(self.decoder1, up))


def _stage_prefixes(encoder: str, stages: int) -> tuple[tuple[str, ...], ...]:
    """Return the prefixes of the stem and of each stage, with the down-sampling before it and the norm after it."""
    down, blocks, norm = (f"{encoder}.{part}" for part in ("downsample_layers", "stages", "norm"))
    first, *others = ((f"{down}.{i}.", f"{blocks}.{i}.", f"{norm}{i}.") for i in range(stages))
    return first[:1], first[1:], *others


def _call(block: nn.Module, *inputs: Tensor) -> Tensor:
    return block(*inputs)

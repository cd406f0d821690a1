"""REP3D: the Rep3D encoder in a U-shape, with MONAI's UNETR blocks as skips and decoder.

Source: Lee et al., ICML 2026; the decoder is that of 3D UX-Net (Lee et al., ICLR 2023).
"""

import math
from collections.abc import Sequence
from typing import Any, Self

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from networks.Rep3D.rep3d_encoder import MaskMode, Rep3DEncoder, rep3d_block


class REP3D(nn.Module):
    """Segmentation network: four large-kernel stages, residual skip blocks, four up-sampling blocks, 1^3 head.

    65.98 M parameters with the learned mask and 65.83 M with the fixed one, for one channel and 16 classes.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        depths: blocks in each of the four stages.
        feat_size: channels of the four stages; the head is ``feat_size[0]`` wide.
        ks: odd side of the depthwise kernels, voxels.
        hidden_size: channels of the bottleneck; by default twice the last stage's (768 in the paper).
        mask: "learned" (LRBM), "fixed" (the prior alone) or "none" (plain large kernels).
        beta: decay distance of the prior, voxels.
        generator_depth: convolutions in the mask's generator.
        generator_ks: odd side of their kernels, voxels.
        per_channel: one mask a channel instead of one a block.
        norm_name: MONAI normalisation of skips and decoder.
        res_block: residual skip and decoder blocks.
        deploy: build without generators, for folded weights; training checkpoints load too and are folded.
    Shape: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W); D, H, W divisible by 16, not all equal to 16.
    Raises:
        ValueError: an ill argument, or an input with other channels or sides.
    """

    size_divisor = 16  # stem and three down-samplings, each by 2

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        depths: Sequence[int] = (2, 2, 2, 2),
        feat_size: Sequence[int] = (48, 96, 192, 384),
        ks: int = 21,
        hidden_size: int | None = None,
        mask: MaskMode = "learned",
        beta: float = 1.0,
        generator_depth: int = 2,
        generator_ks: int = 7,
        per_channel: bool = False,
        norm_name: str = "instance",
        res_block: bool = True,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        for name, values in (("depths", depths), ("feat_size", feat_size)):
            if len(values) != 4 or min(values) < 1:
                raise ValueError(f"{name}: found {tuple(values)}, expected four positive numbers")
        for name, value in (("in_chans", in_chans), ("out_chans", out_chans), ("hidden_size", hidden_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: found {value}, expected a positive number")
        self.in_chans = in_chans
        lrbm_options = {
            "beta": beta,
            "depth": generator_depth,
            "generator_ks": generator_ks,
            "per_channel": per_channel,
        }
        self.rep3d = Rep3DEncoder(in_chans, depths, feat_size, ks=ks, mask=mask, deploy=deploy, **lrbm_options)

        conv: dict[str, Any] = {"spatial_dims": 3, "kernel_size": 3, "norm_name": norm_name, "res_block": res_block}
        skips = [in_chans, *feat_size]  # the image and the four stages
        widths = [*feat_size, 2 * feat_size[-1] if hidden_size is None else hidden_size]
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

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 5 or x.shape[1] != self.in_chans:
            raise ValueError(f"input: found shape {tuple(x.shape)}, expected (N, {self.in_chans}, D, H, W)")
        self.check_input_size(x.shape[2:])
        stages = self.rep3d(x)
        skip1, skip2, skip3, skip4 = (
            self.encoder1(x),
            *(
                encoder(stage)
                for encoder, stage in zip((self.encoder2, self.encoder3, self.encoder4), stages[:3], strict=True)
            ),
        )
        up = self.encoder5(stages[3])
        up = self.decoder5(up, skip4)
        up = self.decoder4(up, skip3)
        up = self.decoder3(up, skip2)
        up = self.decoder2(up, skip1)
        return self.out(self.decoder1(up))

    @classmethod
    def check_input_size(cls, size: Sequence[int], what: str = "input size") -> None:
        """Raise ValueError, calling it ``what``, where (D, H, W) does not survive the four down-samplings.

        The bottleneck's instance normalisation needs more than one voxel.
        """
        divisible = all(side > 0 and side % cls.size_divisor == 0 for side in size)
        if len(size) != 3 or not divisible or math.prod(size) == cls.size_divisor**3:
            expected = (
                f"three sides divisible by {cls.size_divisor}, at least one of them {2 * cls.size_divisor} or more"
            )
            raise ValueError(f"{what}: found {' x '.join(map(str, size))}, expected {expected}")

    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        """Fold every block's mask into its kernel, in place; see ``rep3d_block.switch_to_deploy``."""
        for module in self.modules():
            if isinstance(module, rep3d_block):
                module.switch_to_deploy(fuse_norm)
        return self

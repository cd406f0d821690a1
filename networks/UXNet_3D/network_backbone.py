"""UXNET: 3D UX-Net with 7^3 or larger kernels, plain or with Rep3D's mask.

Source: Lee et al., "3D UX-Net: A Large Kernel Volumetric ConvNet Modernizing Hierarchical Transformer for Medical Image
Segmentation", ICLR 2023. State_dict keys are those of the published code.
"""

from collections.abc import Sequence
from functools import partial

from ..large_kernel_unet import LargeKernelUNet
from ..Rep3D.lrbm import Correction
from ..Rep3D.rep3d_encoder import MaskMode
from .uxnet_block import ux_block


class UXNET(LargeKernelUNet):
    """Segmentation network: a ``LargeKernelUNet`` with four stages of ``ux_block``.

    53.01 M parameters with 7^3 kernels, 65.85 M with 21^3, 66.00 M with 21^3 and the LRBM (1 channel, 16 classes).

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        depths: blocks in each of the four stages.
        feat_size: channels of the four stages; the head is ``feat_size[0]`` wide.
        ks: odd side of the depthwise kernels, voxels.
        hidden_size: channels of the bottleneck; by default twice the last stage's (768 in the paper).
        mask: "none" as published, "learned" (LRBM) or "fixed" (the prior alone).
        correction: what a learned mask learns: "gated", "additive" or "free", see ``LRBM``.
        norm_name: MONAI normalisation of skips and decoder.
        res_block: build skip and decoder blocks as residual ones.
        deploy: build without generators, for folded weights; training checkpoints load as well and are folded.
    Shape: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W); D, H, W divisible by 16, not all equal to 16.
    Raises:
        ValueError: an invalid argument, one that the mask does not use, or an input with other channels or sides.
    """

    encoder_name = "uxnet_3d"

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        depths: Sequence[int] = (2, 2, 2, 2),
        feat_size: Sequence[int] = (48, 96, 192, 384),
        ks: int = 7,
        hidden_size: int | None = None,
        mask: MaskMode = "none",
        correction: Correction = "gated",
        norm_name: str = "instance",
        res_block: bool = True,
        deploy: bool = False,
    ) -> None:
        make_block = partial(ux_block, ks=ks, mask=mask, correction=correction, deploy=deploy)
        super().__init__(in_chans, out_chans, depths, feat_size, make_block, hidden_size, norm_name, res_block)

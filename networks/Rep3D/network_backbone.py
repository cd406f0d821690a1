"""REP3D: large-kernel encoder with a learnable mask on each kernel, U-shaped decoder.

Source: Lee et al., ICML 2026.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from ..large_kernel_unet import LargeKernelUNet
from .compounding_block import compounding_block
from .lrbm import Correction, Padding
from .rep3d_encoder import MaskMode, check_options, rep3d_block

Product = Literal["functional", "compounding", "published"]


class REP3D(LargeKernelUNet):
    """Segmentation network: a ``LargeKernelUNet`` with four stages of ``rep3d_block``.

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
        generator_padding: what they see outside the map, "zeros" or the values of its border ("replicate").
        per_channel: learn one mask per channel instead of one per block.
        correction: what is learned: "gated", "additive" or "free", see ``LRBM``.
        mask_floor: smallest value of a mask; None for no limit.
        learn_beta: train ``beta``, one per block, as well.
        product: "functional", W * M in every forward pass, or one of the two readings of the published product in
            ``compounding_block``, "compounding" as stated or "published" as in the code; these need the fixed mask.
        norm_name: MONAI normalisation of skips and decoder.
        res_block: build skip and decoder blocks as residual ones.
        deploy: build without generators, for folded weights; training checkpoints load as well and are folded.
    Shape: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W); D, H, W divisible by 16, not all equal to 16.
    Raises:
        ValueError: an invalid argument, one that the mask does not use, or an input with other channels or sides.
    """

    encoder_name = "rep3d"

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
        generator_padding: Padding = "zeros",
        per_channel: bool = False,
        correction: Correction = "gated",
        mask_floor: float | None = None,
        learn_beta: bool = False,
        product: Product = "functional",
        norm_name: str = "instance",
        res_block: bool = True,
        deploy: bool = False,
    ) -> None:
        options: dict[str, Any] = {
            "beta": beta,
            "generator_depth": generator_depth,
            "generator_ks": generator_ks,
            "generator_padding": generator_padding,
            "per_channel": per_channel,
            "correction": correction,
            "mask_floor": mask_floor,
            "learn_beta": learn_beta,
        }
        make_block: Callable[[int], rep3d_block] = partial(rep3d_block, ks=ks, mask=mask, deploy=deploy, **options)
        if product not in ("functional", "compounding", "published"):
            raise ValueError(f"product: found {product!r}, expected functional, compounding or published")
        if product != "functional":
            if mask != "fixed" or learn_beta or mask_floor is not None:
                raise ValueError(f"product: found {product}, expected a fixed mask without learn_beta and mask_floor")
            check_options(mask, options)
            trained = product == "compounding"
            make_block = partial(compounding_block, ks=ks, trained=trained, beta=beta, deploy=deploy)
        super().__init__(in_chans, out_chans, depths, feat_size, make_block, hidden_size, norm_name, res_block)

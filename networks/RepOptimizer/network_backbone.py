"""REPOPT: plain large-kernel network trained with constant-scale gradient re-parameterisation.

Source: Ding et al., "Re-parameterizing Your Optimizers rather than Architectures", ICLR 2023, applied to the plain
encoder of Rep3D as in the ablation of the Rep3D paper.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..large_kernel_unet import LargeKernelUNet
from .csla_block import RateField, Start, csla_block, repopt_block


class REPOPT(LargeKernelUNet):
    """Rep3D's network without masks; the updates of its large kernels are scaled tap by tap instead.

    65.83 M parameters; parameters and state_dict keys are those of the plain network. ``scale_updates``
    makes an optimiser scale the updates; without it the plain network is trained.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        depths: blocks in each of the four stages.
        feat_size: channels of the four stages; the head is ``feat_size[0]`` wide.
        ks: odd side of the depthwise kernels, voxels.
        small_ks: odd side of the window that learns faster, voxels.
        large_scale, small_scale: constants of the large and of the small kernel.
        large_rate, small_rate: factors of their learning rates.
        field: scales of the updates: "csla", those of a large and a small kernel, "prior", those of Rep3D's fixed mask,
            or "uniform", no scales.
        start: initial kernels: "csla", the sum of a large and a small one, "prior", plain kernels times Rep3D's
            distance prior, or "plain".
        branches: build the small kernels as well (CSLA), which has the effect of the field and start "csla" with any
            optimiser.
        hidden_size: channels of the bottleneck; by default twice the last stage's (768 in the paper).
        norm_name: MONAI normalisation of skips and decoder.
        res_block: build skip and decoder blocks as residual ones.
        deploy: build without the small kernels of ``branches``.
    Shape: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W); D, H, W divisible by 16, not all equal to 16.
    Raises:
        ValueError: an invalid argument, or an input with other channels or sides.
    """

    encoder_name = "rep3d"

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        depths: Sequence[int] = (2, 2, 2, 2),
        feat_size: Sequence[int] = (48, 96, 192, 384),
        ks: int = 21,
        small_ks: int = 3,
        large_scale: float = 1.0,
        small_scale: float = 1.0,
        large_rate: float = 1.0,
        small_rate: float = 1.0,
        field: RateField = "csla",
        start: Start = "csla",
        branches: bool = False,
        hidden_size: int | None = None,
        norm_name: str = "instance",
        res_block: bool = True,
        deploy: bool = False,
    ) -> None:
        if branches and (field, start) != ("csla", "csla"):
            raise ValueError(f"branches: found true with field {field} and start {start}, expected csla for both")
        constants: dict[str, Any] = {
            "ks": ks,
            "small_ks": small_ks,
            "large_scale": large_scale,
            "small_scale": small_scale,
            "large_rate": large_rate,
            "small_rate": small_rate,
        }
        make_block = (
            partial(csla_block, deploy=deploy, **constants)
            if branches
            else partial(repopt_block, field=field, start=start, **constants)
        )
        super().__init__(in_chans, out_chans, depths, feat_size, make_block, hidden_size, norm_name, res_block)

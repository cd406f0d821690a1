"""REPUXNET: RepUX-Net with the prior applied in the forward.

Source: Lee et al., "Scaling Up 3D Kernels with Bayesian Frequency Re-parameterization for Medical Image Segmentation",
MICCAI 2023. The published code multiplies the stored kernel by the prior again in every forward of training and hides
the kernel from the optimiser; here W * P is computed in the forward, and W is trained. The deployed form has the
published state_dict keys and uses its stored kernel unchanged, as the published test script does. The training form
additionally stores each block's prior, which distinguishes the two forms.
"""

from collections.abc import Sequence
from functools import partial

from ..large_kernel_unet import LargeKernelUNet
from ..Rep3D.rep3d_encoder import rep3d_block


class REPUXNET(LargeKernelUNet):
    """Segmentation network: four stages of depthwise convolution with bias, batch normalisation and GELU.

    65.83 M parameters for one channel and 16 classes.

    Args:
        in_chans: input channels.
        out_chans: classes, background included.
        depths: blocks in each of the four stages.
        feat_size: channels of the four stages; the head is ``feat_size[0]`` wide.
        ks: odd side of the depthwise kernels, voxels.
        alpha: distance at which the prior alpha / (distance + alpha) has fallen to one half, voxels.
        hidden_size: channels of the bottleneck; by default twice the last stage's (768 in the paper).
        norm_name: MONAI normalisation of skips and decoder.
        res_block: build skip and decoder blocks as residual ones.
        deploy: build without priors, for folded and published weights; training checkpoints load as well, folded.
    Shape: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W); D, H, W divisible by 16, not all equal to 16.
    Raises:
        ValueError: an invalid argument, or an input with other channels or sides.
    """

    encoder_name = "repuxnet_3d"

    def __init__(
        self,
        in_chans: int = 1,
        out_chans: int = 16,
        depths: Sequence[int] = (2, 2, 2, 2),
        feat_size: Sequence[int] = (48, 96, 192, 384),
        ks: int = 21,
        alpha: float = 1.0,
        hidden_size: int | None = None,
        norm_name: str = "instance",
        res_block: bool = True,
        deploy: bool = False,
    ) -> None:
        make_block = partial(rep3d_block, ks=ks, mask="fixed", bias=True, beta=alpha, deploy=deploy)
        super().__init__(in_chans, out_chans, depths, feat_size, make_block, hidden_size, norm_name, res_block)

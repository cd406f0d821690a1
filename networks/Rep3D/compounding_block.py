"""Block whose stored kernel is multiplied by the prior again and again: what Rep3D's predecessor states, and its code.

Not a variant to train with: after n multiplications a tap at distance 1 has shrunk by 2^-n, so that all but the centre
keeps no more than the last steps. It is here to measure what the published numbers were trained with.

Source: Lee et al., "Scaling Up 3D Kernels with Bayesian Frequency Re-parameterization for Medical Image Segmentation",
MICCAI 2023, third equation; published code of RepUX-Net and Rep3D.
"""

import torch
from torch import Tensor

from .lrbm import compute_distance_prior
from .rep3d_encoder import rep3d_block


class compounding_block(rep3d_block):
    """``rep3d_block`` that replaces its kernel W by W * P at the start of every forward pass in training.

    Args:
        dim: channels.
        ks: odd side of the kernel, voxels.
        trained: train W, as RepUX-Net states: W <- P * W - rate * dL/d(P * W). If not, W only receives the products, as
            in the published code, whose optimiser keeps the tensor of the start. The prior stands for the learned mask
            as well: the published generator receives no gradient, and its last normalisation, over one element, is 0.
        beta: decay distance of the prior, voxels.
        deploy: build the deployed form, a plain block.
    Shape: (N, dim, D, H, W) -> (N, dim, D, H, W).
    Raises:
        ValueError: ``ks`` is not odd and positive, or ``beta`` is not positive and finite.
    """

    prior: Tensor

    def __init__(self, dim: int, ks: int = 21, trained: bool = True, beta: float = 1.0, deploy: bool = False) -> None:
        super().__init__(dim, ks, mask="none", deploy=deploy)
        self.register_buffer("prior", compute_distance_prior(ks, beta), persistent=False)
        self.dwconv.weight.requires_grad_(trained)

    def convolve(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.dwconv.weight.mul_(self.prior)
        return super().convolve(x)

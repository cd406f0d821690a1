"""STU-Net: residual U-Net of six stages, scalable in depth and width from 14.6 M to 1.46 G parameters."""

from networks.STUNet.stunet import VARIANTS, STUNet

__all__ = ["VARIANTS", "STUNet"]

"""STU-Net: residual U-Net of six stages, scalable in depth and width from 14.6 M to 1.46 G parameters."""

from .stunet import STUNet

__all__ = ["STUNet"]

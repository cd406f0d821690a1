"""3D UX-Net: ConvNeXt-like blocks around a depthwise large kernel."""

from .network_backbone import UXNET
from .uxnet_block import ux_block

__all__ = ["UXNET", "ux_block"]

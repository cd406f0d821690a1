"""3D UX-Net: ConvNeXt-like blocks around a depthwise large kernel."""

from networks.UXNet_3D.network_backbone import UXNET
from networks.UXNet_3D.uxnet_block import ux_block

__all__ = ["UXNET", "ux_block"]

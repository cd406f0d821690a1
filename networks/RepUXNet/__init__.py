"""RepUX-Net: Rep3D's predecessor, with the distance prior as a fixed mask."""

from networks.RepUXNet.network_backbone import REPUXNET

__all__ = ["REPUXNET"]

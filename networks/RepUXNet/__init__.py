"""RepUX-Net: Rep3D's predecessor, with the distance prior as a fixed mask."""

from .network_backbone import REPUXNET

__all__ = ["REPUXNET"]

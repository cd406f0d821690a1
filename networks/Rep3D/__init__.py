"""Rep3D: plain large-kernel encoder with a learnable spatial mask on each kernel, U-shaped decoder."""

from .network_backbone import REP3D
from .rep3d_encoder import LRBM, compute_distance_prior, rep3d_block

__all__ = ["LRBM", "REP3D", "compute_distance_prior", "rep3d_block"]

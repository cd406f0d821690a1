"""CSLA (constant-scale linear addition), and the plain block that a RepOptimizer trains equivalently."""

from .csla_block import csla_block, repopt_block
from .network_backbone import REPOPT
from .rep_optimizer import find_scaled_blocks, scale_updates

__all__ = ["REPOPT", "csla_block", "find_scaled_blocks", "repopt_block", "scale_updates"]

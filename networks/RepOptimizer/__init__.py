"""CSLA (constant-scale linear addition), and the plain block that a RepOptimizer trains equivalently."""

from .csla_block import csla_block, repopt_block
from .network_backbone import REPOPT

__all__ = ["REPOPT", "csla_block", "repopt_block"]

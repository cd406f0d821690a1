"""CSLA, constant-scale linear addition, and the plain block that a RepOptimizer trains as if it were one."""

from .csla_block import csla_block, repopt_block
from .network_backbone import REPOPT

__all__ = ["REPOPT", "csla_block", "repopt_block"]

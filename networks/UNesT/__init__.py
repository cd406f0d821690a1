"""UNesT: nested transformer encoder that attends within blocks of voxels, U-shaped decoder."""

from networks.UNesT.unest import UNesT

__all__ = ["UNesT"]

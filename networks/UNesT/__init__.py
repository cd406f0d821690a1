"""UNesT: nested transformer encoder that attends within blocks of voxels, U-shaped decoder."""

from .unest import UNesT

__all__ = ["UNesT"]

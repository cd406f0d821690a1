"""nnFormer: U-shape of shifted-window transformers with convolutional embedding, down- and up-sampling."""

from .nnformer import nnFormer

__all__ = ["nnFormer"]

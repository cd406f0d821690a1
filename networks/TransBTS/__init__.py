"""TransBTS: convolutional encoder and decoder with a transformer over the coarsest grid between them."""

from .transbts import TransBTS

__all__ = ["TransBTS"]

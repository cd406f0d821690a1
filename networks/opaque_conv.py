"""Large-kernel convolution as a call that torch.compile does not trace.

Tracing would unroll its chunks of channels into complex-valued operations, which the compiler does not support. The
wrapper has its own module because ``torch.compiler.disable`` loads the compiler, which would slow the start of
prediction.
"""

import torch

from .large_kernel_conv import large_kernel_conv3d

opaque_large_kernel_conv3d = torch.compiler.disable(large_kernel_conv3d, reason="complex operations are not supported")

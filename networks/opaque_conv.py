"""The large-kernel convolution as torch.compile is to see it: a call that it leaves alone.

Traced, its chunks of channels would be unrolled into complex operations, for which the compiler has no code. This is a
module of its own since ``torch.compiler.disable`` loads the compiler, for which prediction should not wait.
"""

import torch

from .large_kernel_conv import large_kernel_conv3d

opaque_large_kernel_conv3d = torch.compiler.disable(large_kernel_conv3d, reason="FFTs are no work for the compiler")

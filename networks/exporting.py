"""Detection that a network is being exported."""

import torch


def is_exported() -> bool:
    """Return True while ``torch.export``, an ONNX exporter or ``torch.jit.trace`` records the operations of a call.

    These know neither custom gradients nor edits of parameters, and the recorded operations should not depend on the
    batch, whose size may vary later. ``torch.compile`` is none of them.
    """
    if torch.compiler.is_dynamo_compiling():  # where torch 2.11 answers is_exporting() with True for torch.compile too
        return getattr(torch.compiler, "_is_exporting_flag", False)
    return torch.compiler.is_exporting() or torch.jit.is_tracing()

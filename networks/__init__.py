"""The networks, and the one place where any of them is built."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from networks.Rep3D import REP3D

NETWORKS: dict[str, Callable[..., REP3D]] = {
    "REP3D": partial(REP3D, mask="learned"),
    "REP3D_FIXED": partial(REP3D, mask="fixed"),
    "REP3D_NONE": partial(REP3D, mask="none"),
}


def build_network(
    name: str,
    in_chans: int,
    out_chans: int,
    roi_size: Sequence[int] = (96, 96, 96),
    deploy: bool = False,
    **overrides: Any,
) -> REP3D:
    """Build a network for training or, with ``deploy``, for prediction.

    Args:
        name: a key of ``NETWORKS``.
        in_chans: input channels.
        out_chans: classes, background included.
        roi_size: (D, H, W) of the crops and sliding windows it will see, voxels.
        deploy: the folded form, where the network has one.
        overrides: further arguments of the network's constructor; ``kernel_size`` stands for the side of its large
            kernels under whatever name the constructor has it.
    Raises:
        ValueError: an unknown name or argument, or a ``roi_size`` that the network cannot take.
    """
    if name not in NETWORKS:
        raise ValueError(f"network: found {name!r}, expected one of {', '.join(NETWORKS)}")
    constructor = NETWORKS[name]
    arguments = {"ks" if key == "kernel_size" else key: value for key, value in overrides.items()}
    if len(arguments) < len(overrides):
        raise ValueError(f"{name}: found both kernel_size and ks, expected one of them")
    known = inspect.signature(constructor).parameters
    if unknown := sorted(set(arguments) - set(known)):
        raise ValueError(f"{name}: found argument {', '.join(unknown)}, expected some of {', '.join(known)}")
    REP3D.check_input_size(roi_size, "roi_size")
    return constructor(in_chans=in_chans, out_chans=out_chans, deploy=deploy, **arguments)

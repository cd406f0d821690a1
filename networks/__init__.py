"""The networks, and the one place where any of them is built."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from networks.base import InputSizes, SegmentationNetwork
from networks.monai_networks import UNETR, MedNeXt, SwinUNETR, UNet3D, nnUNet
from networks.nnFormer import nnFormer
from networks.Rep3D import REP3D
from networks.RepOptimizer import REPOPT
from networks.RepUXNet import REPUXNET
from networks.res_enc_unet import ResEncUNet
from networks.STUNet import VARIANTS, STUNet
from networks.TransBTS import TransBTS
from networks.UNesT import UNesT
from networks.UXNet_3D import UXNET

__all__ = ["NETWORKS", "InputSizes", "SegmentationNetwork", "build_network"]

NETWORKS: dict[str, Callable[..., SegmentationNetwork]] = {
    "REP3D": partial(REP3D, mask="learned"),
    "REP3D_FIXED": partial(REP3D, mask="fixed"),
    "REP3D_NONE": partial(REP3D, mask="none"),
    "3DUXNET": UXNET,
    "3DUXNET_K21": partial(UXNET, ks=21),
    "3DUXNET_LRBM": partial(UXNET, ks=21, mask="learned"),
    "REPUXNET": REPUXNET,
    "REPOPT": REPOPT,
    "SwinUNETR": SwinUNETR,
    "UNETR": UNETR,
    "UNet3D": UNet3D,
    "nnUNet": nnUNet,
    "MedNeXt_S": partial(MedNeXt, size="S"),
    "MedNeXt_B": partial(MedNeXt, size="B"),
    "MedNeXt_M": partial(MedNeXt, size="M"),
    "MedNeXt_L": partial(MedNeXt, size="L", kernel_size=5),  # as in Rep3D's comparison
    "ResEncUNet": ResEncUNet,
    "nnFormer": nnFormer,
    "TransBTS": TransBTS,
    "UNesT": UNesT,
    **{f"STUNet_{size}": partial(STUNet, **variant) for size, variant in VARIANTS.items()},
}


def build_network(
    name: str,
    in_chans: int,
    out_chans: int,
    roi_size: Sequence[int] = (96, 96, 96),
    deploy: bool = False,
    **overrides: Any,
) -> SegmentationNetwork:
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
    known = set(inspect.signature(constructor).parameters)
    context = {"roi_size": tuple(roi_size), "deploy": deploy}
    # A name that stands for a mask or a size settles it; other defaults can be overridden.
    settled = {"mask", "size"} & set(getattr(constructor, "keywords", {}))
    options = known - set(context) - settled - {"in_chans", "out_chans"}
    arguments = {"ks" if key == "kernel_size" and "ks" in known else key: value for key, value in overrides.items()}
    if len(arguments) < len(overrides):
        raise ValueError(f"{name}: found both kernel_size and ks, expected one of them")
    if unknown := sorted(set(arguments) - options):
        raise ValueError(f"{name}: found argument {', '.join(unknown)}, expected some of {', '.join(sorted(options))}")
    shared = {key: value for key, value in context.items() if key in known}
    network = constructor(in_chans=in_chans, out_chans=out_chans, **shared, **arguments)
    network.input_sizes.check(roi_size, "roi_size")
    return network

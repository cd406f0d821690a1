"""The networks, and the one place where any of them is built. Their modules are imported when one is built.

The folder is a package under any name: ``networks`` in a clone, ``rep3d`` where it is installed.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .argument_types import check_types

if TYPE_CHECKING:
    from .base import SegmentationNetwork

__all__ = ["NETWORKS", "__version__", "build_network"]

__version__ = "0.1.0"

# Where a name's constructor is, "module:class", relative to this package or absolute; the arguments that the name
# stands for.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "REP3D": (".Rep3D:REP3D", {"mask": "learned"}),
    "REP3D_FIXED": (".Rep3D:REP3D", {"mask": "fixed"}),
    "REP3D_NONE": (".Rep3D:REP3D", {"mask": "none"}),
    "3DUXNET": (".UXNet_3D:UXNET", {}),
    "3DUXNET_K21": (".UXNet_3D:UXNET", {"ks": 21}),
    "3DUXNET_LRBM": (".UXNet_3D:UXNET", {"ks": 21, "mask": "learned"}),
    "REPUXNET": (".RepUXNet:REPUXNET", {}),
    "REPOPT": (".RepOptimizer:REPOPT", {}),
    "SwinUNETR": (".monai_networks:SwinUNETR", {}),
    "UNETR": (".monai_networks:UNETR", {}),
    "UNet3D": (".monai_networks:UNet3D", {}),
    "nnUNet": (".monai_networks:nnUNet", {}),
    "MedNeXt_S": (".monai_networks:MedNeXt", {"size": "S"}),
    "MedNeXt_B": (".monai_networks:MedNeXt", {"size": "B"}),
    "MedNeXt_M": (".monai_networks:MedNeXt", {"size": "M"}),
    # kernel_size as in Rep3D's comparison
    "MedNeXt_L": (".monai_networks:MedNeXt", {"size": "L", "kernel_size": 5}),
    "ResEncUNet": (".res_enc_unet:ResEncUNet", {}),
    "nnFormer": (".nnFormer:nnFormer", {}),
    "TransBTS": (".TransBTS:TransBTS", {}),
    "UNesT": (".UNesT:UNesT", {}),
    # The published sizes: 14.55 M, 58.17 M and 440.12 M parameters with 14 classes, 1457.03 M with four.
    "STUNet_S": (".STUNet:STUNet", {"feat_size": (16, 32, 64, 128, 256, 256), "depths": 1}),
    "STUNet_B": (".STUNet:STUNet", {"feat_size": (32, 64, 128, 256, 512, 512), "depths": 1}),
    "STUNet_L": (".STUNet:STUNet", {"feat_size": (64, 128, 256, 512, 1024, 1024), "depths": 2}),
    "STUNet_H": (".STUNet:STUNet", {"feat_size": (96, 192, 384, 768, 1536, 1536), "depths": 3}),
}


def build_network(
    name: str,
    in_chans: int,
    out_chans: int,
    roi_size: Sequence[int] = (96, 96, 96),
    deploy: bool = False,
    **overrides: Any,
) -> "SegmentationNetwork":
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
        ValueError: an unknown name or argument, an argument of another type or out of range, or a ``roi_size`` that
            the network cannot take.
    """
    if name not in NETWORKS:
        raise ValueError(f"network: found {name!r}, expected one of {', '.join(NETWORKS)}")
    where, stands_for = NETWORKS[name]
    constructor: Callable[..., SegmentationNetwork] = partial(_find(where), **stands_for)
    known = set(inspect.signature(constructor).parameters)
    context = {"roi_size": tuple(roi_size), "deploy": deploy}
    # A name that stands for a mask or a size settles it; other defaults can be overridden.
    settled = {"mask", "size"} & set(stands_for)
    options = known - set(context) - settled - {"in_chans", "out_chans"}
    arguments = {"ks" if key == "kernel_size" and "ks" in known else key: value for key, value in overrides.items()}
    if len(arguments) < len(overrides):
        raise ValueError(f"{name}: found both kernel_size and ks, expected one of them")
    if unknown := sorted(set(arguments) - options):
        raise ValueError(f"{name}: found argument {', '.join(unknown)}, expected some of {', '.join(sorted(options))}")
    try:
        check_types(_find(where), arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    shared = {key: value for key, value in context.items() if key in known}
    network = constructor(in_chans=in_chans, out_chans=out_chans, **shared, **arguments)
    network.input_sizes.check(roi_size, "roi_size")
    return network


def _find(where: str) -> Any:
    """The constructor that an entry of ``NETWORKS`` names."""
    stay_importable()
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module, __name__), name)


_this_package = sys.modules[__name__]


def stay_importable() -> None:
    """Register the package again where it was dropped from ``sys.modules``.

    nnU-Net imports trainers from a folder that it puts on ``sys.path``, then removes the folder from there, and from
    ``sys.modules`` all that came from it. Python still finds the modules that building or compiling a network imports:
    it looks for them on the ``__path__`` of a registered package.
    """
    sys.modules.setdefault(__name__, _this_package)

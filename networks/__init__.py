"""All networks by name, and ``build_network``, which builds any of them; ``pretrained`` keeps them in files.

Modules are imported on demand: a script's --help does not wait for PyTorch.

The folder works as a package under any name: ``networks`` in a clone, ``rep3d`` once installed.
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
    from .pretrained import from_pretrained, save_pretrained

__all__ = ["NETWORKS", "__version__", "build_network", "from_pretrained", "save_pretrained"]

__version__ = "0.1.0"

# Name -> (constructor as "module:class", relative to this package or absolute; arguments that the name implies).
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "REP3D": (".Rep3D:REP3D", {"mask": "learned"}),
    "REP3D_FIXED": (".Rep3D:REP3D", {"mask": "fixed"}),
    "REP3D_NONE": (".Rep3D:REP3D", {"mask": "none"}),
    "3DUXNET": (".UXNet_3D:UXNET", {}),
    "3DUXNET_K21": (".UXNet_3D:UXNET", {"ks": 21}),
    "3DUXNET_LRBM": (".UXNet_3D:UXNET", {"ks": 21, "mask": "learned"}),
    "3DUXNET_LRBM_K7": (".UXNet_3D:UXNET", {"mask": "learned"}),
    "REPUXNET": (".RepUXNet:REPUXNET", {}),
    "REPOPT": (".RepOptimizer:REPOPT", {}),
    "SwinUNETR": (".monai_networks:SwinUNETR", {}),
    # Global kernels in the two outer stages: the best variant of its paper.
    "HyenaNDUNETR": (".monai_networks:SwinUNETR", {"hyena_stages": (True, True, False, False)}),
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
        roi_size: (D, H, W) of the crops and sliding windows, voxels.
        deploy: build the folded form, if the network has one.
        overrides: further arguments of the network's constructor; ``kernel_size`` is the side of its large kernels,
            whatever the constructor calls it.
    Returns: the network, whose attribute ``config`` holds these arguments.
    Raises:
        ValueError: an unknown name or argument, an argument of the wrong type or out of range, or a ``roi_size`` that
            the network does not accept.
    """
    if name not in NETWORKS:
        raise ValueError(f"network: found {name!r}, expected one of {', '.join(NETWORKS)}")
    path, implied = NETWORKS[name]
    constructor: Callable[..., SegmentationNetwork] = partial(_import_by_name(path), **implied)
    known = set(inspect.signature(constructor).parameters)
    context = {"roi_size": tuple(roi_size), "deploy": deploy}
    # A name that implies a mask or a size fixes it; the other implied arguments are defaults.
    fixed = {"mask", "size"} & set(implied)
    options = known - set(context) - fixed - {"in_chans", "out_chans"}
    arguments = {"ks" if key == "kernel_size" and "ks" in known else key: value for key, value in overrides.items()}
    if len(arguments) < len(overrides):
        raise ValueError(f"{name}: found both kernel_size and ks, expected one of them")
    if unknown := sorted(set(arguments) - options):
        expected = sorted("kernel_size" if option == "ks" else option for option in options)
        raise ValueError(f"{name}: found argument {', '.join(unknown)}, expected some of {', '.join(expected)}")
    shared = {key: value for key, value in context.items() if key in known}
    try:
        check_types(_import_by_name(path), arguments)
        network = constructor(in_chans=in_chans, out_chans=out_chans, **shared, **arguments)
        network.input_sizes.check(roi_size, "roi_size")
    except (ImportError, TypeError, ValueError) as error:  # MONAI's messages may have several lines
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
    network.config = {
        "network": name,
        "in_chans": in_chans,
        "out_chans": out_chans,
        "roi_size": list(roi_size),
        "overrides": overrides,
    }
    return network


def is_built_for_roi_size(name: str) -> bool:
    """Check whether the weights of a network depend on ``roi_size``."""
    path, _ = NETWORKS[name]
    return "roi_size" in inspect.signature(_import_by_name(path)).parameters


def names_with(method: str) -> list[str]:
    """List the networks that define an optional method of ``SegmentationNetwork``, which raises ValueError without."""
    from .base import SegmentationNetwork

    inherited = getattr(SegmentationNetwork, method)
    return [name for name, (path, _) in NETWORKS.items() if getattr(_import_by_name(path), method) is not inherited]


def __getattr__(name: str) -> Any:
    """Import the functions of ``pretrained`` on demand."""
    if name in ("from_pretrained", "save_pretrained"):
        return _import_by_name(f".pretrained:{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _import_by_name(path: str) -> Any:
    """Import "module:name", as an entry of ``NETWORKS`` names its constructor."""
    stay_importable()
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module, __name__), name)


_this_package = sys.modules[__name__]


def stay_importable() -> None:
    """Register the package again if it was dropped from ``sys.modules``.

    nnU-Net puts a folder of trainers on ``sys.path``, imports them, then removes the folder from ``sys.path`` and its
    modules from ``sys.modules``. Building or compiling a network imports further modules of this package, which Python
    finds on the ``__path__`` of the registered package.
    """
    sys.modules.setdefault(__name__, _this_package)

"""Masks of HyenaND's kernels that can be exported; for the optional package nvsubquadratic."""

from typing import Any

from torch import Tensor, nn

from .exporting import is_exported

try:
    from nvsubquadratic.modules.masks_nd import GaussianModulationND
except ImportError:  # nnU-Net imports every module of a folder with trainers, whether it is needed or not
    GaussianModulationND = nn.Module


class ExportableMask(GaussianModulationND):
    """Gaussian mask whose widths, while it is exported, are limited by an operation.

    Otherwise they are limited by the library, which edits the parameter in place before each call. ``torch.export``
    cannot record that.
    """

    def _compute_std(self) -> Tensor:
        std = super()._compute_std()
        return std.clamp(self.min_std, self.max_std) if is_exported() else std


def make_masks_exportable(network: nn.Module) -> None:
    """Turn all Gaussian masks of a network into ``ExportableMask``; parameters and results stay the same."""
    masks: list[Any] = [module for module in network.modules() if type(module) is GaussianModulationND]
    for mask in masks:
        if mask.parametrization == "direct":
            mask._clamp_hook.remove()
            mask.__class__ = ExportableMask
            mask._clamp_hook = mask.register_forward_pre_hook(_limit_widths)


def _limit_widths(mask: ExportableMask, inputs: tuple[Any, ...]) -> None:
    if not is_exported():
        mask._clamp_direct_std_param_pre_hook(mask, inputs)

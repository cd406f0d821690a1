"""Mean probability of several networks, and of each over mirrored windows."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from engine.prediction.sliding_window import SlidingWindow, predict_logits
from networks.base import SegmentationNetwork
from networks.large_kernel_conv import keep_kernel_spectra

SLAB = 16  # voxels along the first axis: what is computed beside the volumes themselves stays small


@dataclass(frozen=True)
class Member:
    """Network of an ensemble.

    Args:
        network: network in evaluation mode, on its device.
        window: its sliding window.
        precision: its autocast precision, as ``--amp`` names it.
    """

    network: SegmentationNetwork
    window: SlidingWindow
    precision: str


@dataclass(frozen=True)
class Ensemble:
    """One or more networks whose probabilities are averaged.

    All are on the device for the whole run: their weights are small beside the logits of a volume.

    Args:
        members: the networks. They may differ in everything but their classes.
        mirrored: axes (0 to 2) of mirroring: the average is over every combination of them, none included.
    """

    members: Sequence[Member]
    mirrored: Sequence[int] = ()

    @property
    def passes(self) -> list[tuple[Member, tuple[int, ...]]]:
        """Each member with each combination of axes; the first one is not mirrored."""
        return [(member, axes) for member in self.members for axes in all_combinations(self.mirrored)]

    def count_windows(self, sides: Sequence[int]) -> int:
        """Count the windows of all passes over a volume of ``sides`` (D, H, W) voxels."""
        return sum(member.window.count(sides) for member, _ in self.passes)

    def predict(self, image: Tensor, progress: Callable[[int], object] = lambda windows: None) -> Tensor:
        """Predict the logits of one volume, whose softmax is the mean probability of all passes.

        The logits of a single pass are the network's own; of several, they are the logarithms of the mean. Then the
        memory is that of two volumes of logits.

        Args:
            image: preprocessed volume on any device.
            progress: as in ``predict_logits``.
        Shape: (channels, D, H, W) -> (classes, D, H, W), float32, where ``predict_logits`` has placed the first one.
        """
        (first, unmirrored), *others = self.passes
        total = predict_logits(first.network, image, first.window, unmirrored, progress)
        if not others:
            return total
        with torch.inference_mode():
            for slab in total.split(SLAB, dim=1):
                slab.copy_(slab.softmax(dim=0))
            for member, axes in others:
                add_probabilities(total, predict_logits(member.network, image, member.window, axes, progress))
            smallest = torch.finfo(total.dtype).tiny  # the logarithm of 0 is not finite
            return total.div_(1 + len(others)).clamp_(min=smallest).log_()

    @contextmanager
    def keep_kernel_spectra(self) -> Iterator[None]:
        """Within this context, transform each large kernel of the networks once instead of once per volume."""
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(keep_kernel_spectra(member.network))
            yield


def name_sided_classes(classes: Sequence[str]) -> list[str]:
    """List the classes named left or right, which a network confuses in windows mirrored along R-L."""
    return [name for name in classes if re.search("(?<![a-z])(left|right)", name.lower())]


def add_probabilities(total: Tensor, logits: Tensor) -> None:
    """Add the softmax of logits to a sum, slab by slab, (classes, D, H, W); the two may be on different devices."""
    for slab, added in zip(total.split(SLAB, dim=1), logits.split(SLAB, dim=1), strict=True):
        slab += added.softmax(dim=0).to(total.device)


def all_combinations(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """List every combination of axes, that of none first."""
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]

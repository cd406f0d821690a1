"""What every network here offers beside its forward: the inputs it takes, the parameters that depend on the task."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from . import stay_importable


def check_positive(**arguments: int) -> None:
    """Raise ValueError where an argument is no positive number."""
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name}: found {value}, expected a positive number")


def check_all_positive(count: int, **arguments: Sequence[int]) -> None:
    """Raise ValueError where an argument is not ``count`` positive numbers."""
    for name, values in arguments.items():
        if len(values) != count or min(values) < 1:
            raise ValueError(f"{name}: found {tuple(values)}, expected {count} positive numbers")


@dataclass(frozen=True)
class InputSizes:
    """The sizes (D, H, W), voxels, of the inputs that a network takes.

    Args:
        divisor: of the three sides, or of each; the input's sides over it are those of the network's coarsest grid.
        least_coarse: voxels of the coarsest grid at least, in all: two where a normalisation runs over them.
        built_for: the one size that a network takes which is tied to its construction, None for the others.
    Raises:
        ValueError: ``built_for`` does not obey the rest.
    """

    divisor: int | tuple[int, int, int]
    least_coarse: int = 2
    built_for: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.built_for is not None:
            InputSizes(self.divisor, self.least_coarse).check(self.built_for, "roi_size")

    @property
    def divisors(self) -> tuple[int, int, int]:
        """The divisor of each side."""
        return (self.divisor,) * 3 if isinstance(self.divisor, int) else self.divisor

    @property
    def smallest(self) -> tuple[int, int, int]:
        """A size of as few voxels as a network can take, or be built for."""
        depth, height, width = self.divisors
        return depth, height, self.least_coarse * width

    def check(self, size: Sequence[int], what: str = "input size") -> None:
        """Raise ValueError, calling it ``what``, where the network cannot take an input of ``size`` (D, H, W)."""
        whole = len(size) == 3 and all(
            side > 0 and side % divisor == 0 for side, divisor in zip(size, self.divisors, strict=True)
        )
        large = whole and math.prod(size) >= self.least_coarse * math.prod(self.divisors)
        if not large or (self.built_for is not None and tuple(size) != tuple(self.built_for)):
            raise ValueError(f"{what}: found {' x '.join(map(str, size))}, expected {self}")

    def __str__(self) -> str:
        if self.built_for is not None:
            return f"{' x '.join(map(str, self.built_for))}, the size the network was built for"
        if isinstance(self.divisor, int):
            text, twice = f"three sides divisible by {self.divisor}", f"{2 * self.divisor} or more"
        else:
            text, twice = f"sides divisible by {', '.join(map(str, self.divisor))}", "twice that or more"
        return text if self.least_coarse == 1 else f"{text}, at least one of them {twice}"


class FoldableBlock(nn.Module):
    """A block that trains with more parameters, or other ones, than it needs to predict."""

    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        """Fold in place what only training needs and, with ``fuse_norm``, the normalisation as well."""
        raise NotImplementedError


class SegmentationNetwork(nn.Module):
    """Base of the networks: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W); calls check their input.

    Every constructor takes ``in_chans`` and ``out_chans`` (classes, background included), and sets the attributes.
    Prefixes are those of state_dict keys.
    """

    in_chans: int
    out_chans: int
    input_sizes: InputSizes
    stem_prefixes: tuple[str, ...]  # weights whose second dimension follows in_chans
    head_prefixes: tuple[str, ...]  # parameters that follow out_chans
    # In the official state_dict, but without a part in the output. They are frozen: a parameter that waits in vain for
    # a gradient stops DistributedDataParallel.
    unused_prefixes: tuple[str, ...] = ()
    ignored_prefixes: tuple[str, ...] = ()  # of official checkpoints, for which the network has no parameters

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        stay_importable()
        super().__init__(*args, **kwargs)  # of the library's network, where there is one
        self.register_forward_pre_hook(_take_input, with_kwargs=True)

    def freeze_unused(self) -> None:
        """Ask for no gradients of the parameters under ``unused_prefixes``; constructors end with it."""
        for name, parameter in self.named_parameters():
            if name.startswith(self.unused_prefixes):
                parameter.requires_grad_(False)

    def enable_checkpointing(self) -> None:
        """Compute activations again in the backward pass rather than keep them: less memory, more time, the same bits.

        Raises:
            ValueError: a network that has no such form.
        """
        raise ValueError(f"{type(self).__name__} keeps all its activations, expected a network with checkpointing")

    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        """Fold in place every block that has something to fold (``FoldableBlock``); a second call changes nothing."""
        for module in self.modules():
            if isinstance(module, FoldableBlock):
                module.switch_to_deploy(fuse_norm)
        return self


def _take_input(
    network: SegmentationNetwork, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
) -> tuple[tuple[Tensor], dict[str, Any]]:
    """The input by position, whether the call has it so or as ``x``, a name that some of MONAI's networks lack.

    Raises:
        ValueError: the input is no (N, in_chans, D, H, W) of a size that the network takes.
    """
    x = _the_input(*inputs, **named)
    if x.dim() != 5 or x.shape[1] != network.in_chans:
        raise ValueError(f"input: found shape {tuple(x.shape)}, expected (N, {network.in_chans}, D, H, W)")
    network.input_sizes.check(x.shape[2:])
    return (x,), {}


def _the_input(x: Tensor) -> Tensor:
    return x

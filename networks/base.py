"""Base class of the networks: checks of the input, and which parameters depend on the task."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from . import stay_importable

Network = TypeVar("Network", bound=nn.Module)
Logits = Tensor | tuple[Tensor, ...]  # several: of deep supervision, finest grid first


def check_positive(**arguments: int) -> None:
    """Raise ValueError if an argument is not positive."""
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name}: found {value}, expected a positive number")


def check_all_positive(count: int, **arguments: Sequence[int]) -> None:
    """Raise ValueError if an argument does not have ``count`` positive items."""
    for name, values in arguments.items():
        if len(values) != count or min(values) < 1:
            raise ValueError(f"{name}: found {tuple(values)}, expected {count} positive numbers")


def accepts_empty_batch(forward: Callable[[Network, Tensor], Logits]) -> Callable[[Network, Tensor], Logits]:
    """Decorate a forward whose layers fail on an empty batch: it gets a sample of zeros, whose logits are dropped."""

    @functools.wraps(forward)
    def checked(network: Network, x: Tensor) -> Logits:
        if len(x) > 0:
            return forward(network, x)
        logits = forward(network, torch.cat((x, x.new_zeros(1, *x.shape[1:]))))
        return logits[:0] if isinstance(logits, Tensor) else tuple(grid[:0] for grid in logits)

    return checked


@dataclass(frozen=True)
class InputSizes:
    """Input sizes (D, H, W) that a network accepts, voxels.

    Args:
        divisor: divisor of all three sides, or (D, H, W) divisors: input size / divisor = size of the coarsest grid.
        least_coarse: minimum number of voxels of the coarsest grid; two if a normalisation runs over them.
        built_for: the only accepted size, for networks that are built for one size.
    Raises:
        ValueError: ``built_for`` violates the other two.
    """

    divisor: int | tuple[int, int, int]
    least_coarse: int = 2
    built_for: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.built_for is not None:
            InputSizes(self.divisor, self.least_coarse).check(self.built_for, "roi_size")

    @property
    def divisors(self) -> tuple[int, int, int]:
        """Divisors of (D, H, W)."""
        return (self.divisor,) * 3 if isinstance(self.divisor, int) else self.divisor

    @property
    def smallest(self) -> tuple[int, int, int]:
        """A size with the fewest voxels that the network accepts or, if tied to one size, can be built for."""
        depth, height, width = self.divisors
        return depth, height, self.least_coarse * width

    def check(self, size: Sequence[int], what: str = "input size") -> None:
        """Raise ValueError, naming the size ``what``, if the network does not accept inputs of ``size`` (D, H, W)."""
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
    """Block whose training form can be folded into a smaller one for prediction."""

    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        """Fold the training form in place; with ``fuse_norm``, also the normalisation."""
        raise NotImplementedError


class SegmentationNetwork(nn.Module):
    """Base class of the networks: (N, in_chans, D, H, W) -> logits (N, out_chans, D, H, W). Calls check the input.

    Every constructor takes ``in_chans`` and ``out_chans`` (classes, background included) and sets the attributes below.
    Prefixes refer to state_dict keys.
    """

    in_chans: int
    out_chans: int
    input_sizes: InputSizes
    stem_prefixes: tuple[str, ...]  # weights whose second dimension depends on in_chans
    head_prefixes: tuple[str, ...]  # parameters whose shape depends on out_chans
    # The encoder, for fine-tuning: prefixes of its parameters and modules, a tuple for each stage from the image to the
    # coarsest grid. All else is decoder, also skips and bottlenecks that keep the grid. Without any, the network cannot
    # be fine-tuned stage by stage.
    encoder_prefixes: tuple[tuple[str, ...], ...] = ()
    # Parameters of the official state_dict that the forward does not use. They are frozen, because
    # DistributedDataParallel fails on parameters that require a gradient and get none.
    unused_prefixes: tuple[str, ...] = ()
    # Keys of official checkpoints, and of checkpoints of deep supervision, that have no parameters here.
    ignored_prefixes: tuple[str, ...] = ()
    deep_supervision = False  # set by enable_deep_supervision

    # What files of ``pretrained`` say of a network. Constructors do not set it.
    config: dict[str, Any] | None = None  # arguments of build_network, set by it
    description: dict[str, Any] | None = None  # dataset that it was trained for, in the form of --dataset

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        stay_importable()
        super().__init__(*args, **kwargs)  # the arguments are those of MONAI's class, if any
        self.register_forward_pre_hook(_check_input, with_kwargs=True)

    def freeze_unused(self) -> None:
        """Freeze the parameters under ``unused_prefixes``; to be called at the end of a constructor."""
        for name, parameter in self.named_parameters():
            if name.startswith(self.unused_prefixes):
                parameter.requires_grad_(False)

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, more time, same results.

        Raises:
            ValueError: the network does not support it.
        """
        raise ValueError(f"{type(self).__name__} keeps all its activations")

    def enable_deep_supervision(self) -> None:
        """Return the logits of coarser decoder stages, too, in training mode; evaluation mode does not change.

        Then ``forward`` in training mode returns a tuple of logits (N, out_chans, D / f, H / f, W / f), finest first:
        those at full resolution, and those of the stages that the network's authors train with a loss of their own.
        Heads that the network lacks are created, on the CPU.

        Raises:
            ValueError: the network has no such stages.
        """
        raise ValueError(f"{type(self).__name__} has no deep supervision in its paper")

    def switch_to_deploy(self, fuse_norm: bool = False) -> Self:
        """Fold every ``FoldableBlock`` in place; a second call changes nothing."""
        for module in self.modules():
            if isinstance(module, FoldableBlock):
                module.switch_to_deploy(fuse_norm)
        return self


def _check_input(
    network: SegmentationNetwork, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
) -> tuple[tuple[Tensor], dict[str, Any]]:
    """Check the input and pass it on by position, also if it was given as ``x=``, a name that some MONAI networks lack.

    Raises:
        TypeError: there is not exactly one input, a tensor.
        ValueError: the shape is not (N, in_chans, D, H, W), or the network does not accept (D, H, W).
    """
    x = forward(*inputs, **named)
    if not isinstance(x, Tensor):
        raise TypeError(f"input: found {type(x).__name__}, expected a tensor (N, {network.in_chans}, D, H, W)")
    if x.dim() != 5 or x.shape[1] != network.in_chans:
        raise ValueError(f"input: found shape {tuple(x.shape)}, expected (N, {network.in_chans}, D, H, W)")
    network.input_sizes.check(x.shape[2:])
    return (x,), {}


def forward(x: Tensor) -> Tensor:
    """Return the only argument of a forward; for any other call, Python's TypeError names this function."""
    return x

"""Types of command-line values, each with an error message for an invalid value."""

import argparse
import ast
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from engine.runtime.errors import InputError

HOURS_OF_A_YEAR = 8760
DEFAULT_NETWORK, DEFAULT_ROI_SIZE = "REP3D", (96, 96, 96)
NETWORK_FLAGS = ("feat_size", "kernel_size")  # arguments of the network's constructor that have flags of their own
AXES = ("RL", "AP", "IS")  # of volumes after preprocessing, in their order
PARTS = ("training", "validation", "test")  # of a split
AMP_CHOICES = ("auto", "bf16", "fp16", "off")


def number(kind: type, low: float, high: float = float("inf"), *, open_high: bool = False) -> Callable[[str], float]:
    """Make a converter to ``kind`` (int or float) that accepts ``low`` to ``high``; ``open_high`` excludes ``high``."""
    bounds = f"from {low:g}" + ("" if high == float("inf") else f" to {'below ' if open_high else ''}{high:g}")
    expected = f"{'a whole number' if kind is int else 'a number'} {bounds}"

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        huge = kind is int and value is not None and value > sys.maxsize
        if value is None or huge or not low <= value <= high or (open_high and value == high):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
        return value

    return convert


def positive(text: str) -> float:
    """Convert text to a finite number above zero."""
    value = number(float, 0)(text)
    if value == 0 or value == float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")
    return value


def fraction(text: str) -> float:
    """Convert text to a number above zero and at most one."""
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0 and at most 1")
    return value


def hours(text: str) -> float:
    """Convert text to a time span in hours, above zero and at most a year."""
    value = positive(text)
    if value > HOURS_OF_A_YEAR:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected at most {HOURS_OF_A_YEAR} hours")
    return value


def odd(text: str) -> int:
    """Convert text to an odd whole number: the side of a kernel, in voxels."""
    value = int(number(int, 1)(text))
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an odd number")
    return value


def boolean(text: str) -> bool:
    """Convert the text True or False, in any case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected True or False")
    return text.lower() == "true"


class NetworkArguments(argparse.Action):
    """Collect NAME=VALUE words into a dictionary; values are Python literals (2, 0.5, true, 2,2,2) or text."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, words: Any, *_: Any) -> None:
        arguments: dict[str, Any] = {}
        for word in words:
            name, equals, text = word.partition("=")
            if not equals or not name.isidentifier():
                parser.error(f"argument {self.option_strings[0]}: found {word!r}, expected NAME=VALUE")
            if name in arguments:
                parser.error(f"argument {self.option_strings[0]}: found {name} twice, expected it once")
            arguments[name] = _parse_value(text)
        setattr(namespace, self.dest, arguments)


class Axes(argparse.Action):
    """Collect names of ``AXES``, in their order and each once; no name means all of them."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, words: Any, *_: Any) -> None:
        setattr(namespace, self.dest, [axis for axis in AXES if axis in (words or AXES)])


def _parse_value(text: str) -> Any:
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        value = ast.literal_eval(text)
        # Only values that JSON has, so that they are unchanged when read back from a checkpoint or a settings file.
        return json.loads(json.dumps(value)) if isinstance(value, int | float | str | tuple | list) else text
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def format_value(value: Any) -> str:
    """Format the value of a flag as it is typed: 96 96 96, beta=2 per_channel=true, on, off, or "none given"."""
    if value is None:
        return "none given"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return " ".join(f"{name}={json.dumps(item)}" for name, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def add_network_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags that are passed on to the network's constructor, the same in every command."""
    group.add_argument(
        "--feat_size",
        nargs="+",
        type=number(int, 1),
        metavar="CHANNELS",
        help="channels of the stages (default: the network's own)",
    )
    group.add_argument(
        "--kernel_size",
        type=odd,
        metavar="SIDE",
        help="side of the large kernels, voxels (default: the network's own)",
    )
    group.add_argument(
        "--network_args",
        nargs="+",
        action=NetworkArguments,
        metavar="NAME=VALUE",
        help="any other argument of the network's constructor, for example beta=2 per_channel=true",
    )


def add_window_arguments(group: argparse._ArgumentGroup, overlap: float) -> None:
    """Add the flags of sliding windows, the same in every command except for the default of the overlap."""
    group.add_argument(
        "--overlap",
        type=number(float, 0, 1, open_high=True),
        default=overlap,
        metavar="SHARE",
        help="overlap of neighbouring sliding windows",
    )
    group.add_argument(
        "--sw_batch_size",
        type=number(int, 1),
        default=4,
        metavar="N",
        help="sliding windows per forward pass on a GPU",
    )


def add_split_arguments(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the flags that choose cases by a split file, the same in every command."""
    file = "JSON file that says by their ids which cases are in which part, in place of the folders"
    group.add_argument("--split", metavar="FILE", help=file)
    group.add_argument("--fold", type=number(int, 0), metavar="K", help="fold of --split, from 0")


def add_part_argument(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the flag that chooses one part of a split."""
    part = "part of --split (default: test if there is one, or else validation)"
    group.add_argument("--part", choices=PARTS, help=part)


def add_fix_affine_argument(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the flag for labels without a valid affine, the same in every command."""
    same = "take the affine of the image for labels and further channels of the same shape"
    group.add_argument("--fix_affine", action="store_true", help=same)


def add_device_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags of device and precision, the same in every command."""
    group.add_argument("--gpu", default="0", metavar="DEVICE", help="number of a CUDA device, or cpu")
    group.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="precision of autocast")


def network_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the arguments of the network's constructor that were given as flags.

    Raises:
        InputError: an argument was given twice.
    """
    overrides = {name: getattr(args, name) for name in NETWORK_FLAGS if getattr(args, name) is not None}
    for given, value in (args.network_args or {}).items():
        # Some constructors call it ks; with one name for both, a flag replaces the argument that a checkpoint holds.
        name = "kernel_size" if given == "ks" else given
        if name in overrides:
            raise InputError(f"--network_args: found {given}, expected it once, as --{name}")
        overrides[name] = value
    return overrides


def use_defaults(flags: dict[str, Any]) -> None:
    """Set ``network`` and ``roi_size`` to their defaults where they are None."""
    flags["network"] = flags["network"] or DEFAULT_NETWORK
    flags["roi_size"] = flags["roi_size"] or list(DEFAULT_ROI_SIZE)


def name_network_flags(overrides: Iterable[str]) -> str:
    """List the flags that set these arguments of the network's constructor, for messages."""
    return ", ".join(sorted({f"--{name}" if name in NETWORK_FLAGS else "--network_args" for name in overrides}))

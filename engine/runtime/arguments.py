"""Types of command-line values, each with the message for a value it cannot take."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

HOURS_OF_A_YEAR = 8760
AMP_CHOICES = ("auto", "bf16", "fp16", "off")


def number(kind: type, low: float, high: float = float("inf"), *, open_high: bool = False) -> Callable[[str], float]:
    """A value of ``kind`` (int or float) between ``low`` and ``high``, ``high`` itself excluded with ``open_high``."""
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
    """A number above zero."""
    value = number(float, 0)(text)
    if value == 0 or value == float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")
    return value


def hours(text: str) -> float:
    """A span of time above zero, at most a year."""
    value = positive(text)
    if value > HOURS_OF_A_YEAR:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected at most {HOURS_OF_A_YEAR} hours")
    return value


def odd(text: str) -> int:
    """An odd whole number: the side of a kernel, voxels."""
    value = int(number(int, 1)(text))
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an odd number")
    return value


def boolean(text: str) -> bool:
    """True or False, spelt out."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected True or False")
    return text.lower() == "true"


def network_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the network's constructor that were given as flags."""
    return {name: getattr(args, name) for name in ("feat_size", "kernel_size") if getattr(args, name) is not None}

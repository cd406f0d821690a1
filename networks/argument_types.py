"""Checks of a constructor's arguments against its annotations, for arguments that come from a command line."""

import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NUMBERS = {int: Integral, float: Real}  # these include NumPy's numbers
SINGULAR = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}
PLURAL = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts", types.NoneType: "none"}


def check_types(constructor: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check that every value has the annotated type.

    Args:
        constructor: class or function; its arguments without an annotation are not checked.
        arguments: values by name.
    Raises:
        ValueError: a value has another type; the message names its argument.
    """
    hints = get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    for name, value in arguments.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint):
            raise ValueError(f"{name}: found {value!r}, expected {_describe(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if hint in NUMBERS:
        return isinstance(value, NUMBERS[hint]) and not isinstance(value, bool) and not _is_huge(value)
    return isinstance(value, hint) if hint in SINGULAR else True


def _is_huge(number: Real) -> bool:
    """Return True for integers that do not fit in 64 bits, which PyTorch does not accept as sizes."""
    return isinstance(number, Integral) and abs(int(number)) > sys.maxsize


def _describe(hint: Any, plural: bool = False) -> str:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(_describe(part, plural) for part in parts)
    if kind is Literal:
        return " or ".join(map(str, parts))
    if kind is Sequence:
        return f"{'lists' if plural else 'a list'} of {_describe(parts[0], plural=True)}"
    return (PLURAL if plural else SINGULAR).get(hint, str(hint))

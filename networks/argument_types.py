"""Checks of a constructor's arguments against its annotations, for arguments that come from a command line."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NUMBERS = {int: Integral, float: Real}  # NumPy's are some too
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}


def check_types(constructor: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the argument, where a value does not have the annotated type.

    Args:
        constructor: a class; arguments without an annotation are not checked.
        arguments: by name.
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
    if kind is not None and issubclass(kind, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if hint in NUMBERS:
        return isinstance(value, NUMBERS[hint]) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in NAMES else True


def _describe(hint: Any) -> str:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(map(_describe, parts))
    if kind is Literal:
        return " or ".join(map(str, parts))
    if kind is not None and issubclass(kind, Sequence):
        return f"values, comma-separated, each {_describe(parts[0])}"
    return NAMES.get(hint, str(hint))

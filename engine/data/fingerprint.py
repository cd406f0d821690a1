"""Fingerprint of a pipeline as plain JSON values: equal in all processes, different if settings or versions change.

Classes and functions of libraries are represented by their names and the libraries' versions, classes of this project
by their names, without modules, and their own ``VERSION``, which is increased when their results change.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.metadata import version
from types import FunctionType
from typing import Any

import numpy as np
import torch

LIBRARIES = ("monai", "torch", "numpy", "nibabel")
# State that use leaves in MONAI's objects: files read last, random generators, switches of a thread.
STATE = ("filenames",)
STATE_TYPES = (np.random.RandomState, threading.local)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that preprocess."""
    return {name: version(name) for name in LIBRARIES}


def fingerprint(value: Any) -> Any:
    """Convert ``value`` to plain values that identify it.

    Objects are represented by class and attributes, functions by name and bound values. ``STATE`` is left out, so that
    used objects equal new ones.

    Raises:
        TypeError: an object has no permanent form, has hidden state, or belongs to this project and has no ``VERSION``.
    """
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum | torch.dtype | np.dtype):
        return str(value)
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return {"values": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        return {str(key): fingerprint(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [fingerprint(item) for item in value]
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, FunctionType):
        return _function(value)
    if _root(type(value)) in sys.stdlib_module_names or not hasattr(value, "__dict__"):
        raise TypeError(f"found a {type(value).__qualname__}, expected parameters that can be written as JSON")
    attributes = {
        name: item for name, item in vars(value).items() if name not in STATE and not isinstance(item, STATE_TYPES)
    }
    return _class(type(value)) | fingerprint(attributes)


def _class(kind: type) -> dict[str, Any]:
    """Describe a class by its name and, if it belongs to this project, by its version and those of its bases."""
    own = [base for base in kind.__mro__ if _root(base) not in {*LIBRARIES, *sys.stdlib_module_names}]
    # The space distinguishes the keys from names of attributes.
    if not own:
        return {"class name": f"{kind.__module__}.{kind.__qualname__}"}
    return {"class name": kind.__qualname__, "class versions": [_version(base) for base in own]}


def _version(kind: type) -> int:
    if "VERSION" not in vars(kind):  # an inherited VERSION would not cover the changes of the class
        raise TypeError(f"found class {kind.__qualname__} without VERSION, expected VERSION = 1 in it")
    return vars(kind)["VERSION"]


def _function(function: FunctionType) -> dict[str, Any]:
    name = f"{function.__module__}.{function.__qualname__}"
    if _root(function) not in LIBRARIES:
        raise TypeError(f"found function {name}, expected a callable class with a VERSION")
    closure = [cell.cell_contents for cell in function.__closure__ or ()]
    return {
        "function": name,
        "line": function.__code__.co_firstlineno,  # distinguishes lambdas
        "bound": fingerprint([function.__defaults__, function.__kwdefaults__, closure]),
    }


def _root(item: type | FunctionType) -> str:
    return item.__module__.partition(".")[0]

"""Files and folders, read and written with one-line errors, and written whole."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rep3d.whole_files import complete_or_absent

from .errors import PlansError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        PlansError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise PlansError(f"{path}: {error.strerror}, expected a file that nnU-Net wrote") from error
    except ValueError as error:
        raise PlansError(f"{path}: found no JSON, expected a file that nnU-Net wrote") from error
    if not isinstance(content, dict):
        raise PlansError(f"{path}: found a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a temporary file and rename it, so that a kill leaves the old file or the new one."""
    with complete_or_absent(path) as aside:
        aside.write_text(json.dumps(content, indent=4) + "\n")


@contextmanager
def creating(path: Path, flag: str) -> Iterator[None]:
    """Turn a failure to write into a ``PlansError`` that names the output and its flag instead of a temporary file."""
    try:
        yield
    except OSError as error:
        raise PlansError(f"{flag}: {path} cannot be written ({error.strerror}), expected another place") from error

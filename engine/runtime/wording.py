"""Words of messages."""

import math
from collections.abc import Sequence

LISTED = 5  # items that a message lists


def list_some(items: Sequence[str]) -> str:
    """List the first items, and the number of the others."""
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return f"{', '.join(items[:LISTED])}{more}"


def count_of(number: int, noun: str) -> str:
    """Write a number of things: 1 file, 2 files, 2 classes."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """Write a time span, rounded: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"

"""Words of messages."""

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

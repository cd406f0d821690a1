"""Warnings: lines by kind, of which the user sees one for each kind."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

Warnings = dict[str, list[str]]  # lines by kind


def collect_warnings(found: Iterable[Mapping[str, str]]) -> Warnings:
    """Collect the warnings of several cases or files, a line by kind each."""
    collected = defaultdict(list)
    for warnings in found:
        for kind, line in warnings.items():
            collected[kind].append(line)
    return dict(collected)


def merge_warnings(found: Iterable[Warnings]) -> Warnings:
    """Merge warnings, the lines of one kind in the order in which they are given."""
    return collect_warnings({kind: line} for warnings in found for kind, lines in warnings.items() for line in lines)


def summarise_warnings(warnings: Warnings) -> list[str]:
    """Return one line for each kind: the first, and the number of the others."""
    return [
        lines[0] + (f" (and {len(lines) - 1} more of this kind)" if len(lines) > 1 else "")
        for lines in warnings.values()
    ]


def print_warnings(warnings: Warnings) -> None:
    """Print one line for each kind."""
    for line in summarise_warnings(warnings):
        print(f"warning: {line}")

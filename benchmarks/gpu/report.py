"""Final table: at most 60 lines with the results of the steps."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import read_results, results_path
from benchmarks.report import name_machine

MOST_LINES, MOST_COLUMNS = 60, 160


def table(names: Sequence[str], folder: Path, kind: str) -> list[str]:
    """Format a heading and a few lines for each step.

    Args:
        names: names of the steps.
        folder: folder of their JSON files.
        kind: kind of device, "cuda" or "cpu".
    """
    found = {name: results for name in names if (results := read_results(folder, name, kind))}
    sections = {name: section(name, results) for name, results in found.items()}
    while sum(map(len, sections.values())) >= MOST_LINES:
        longest = max(sections, key=lambda name: len(sections[name]))
        sections[longest][-2:] = [f"... {results_path(folder, longest, kind).name} has the rest"]
    machine = [name_machine(results) for results in list(found.values())[:1]]
    return [line[:MOST_COLUMNS] for line in [*machine, *(line for lines in sections.values() for line in lines)]]


def section(name: str, results: dict[str, Any]) -> list[str]:
    """Format one step: its name, seconds and, if it did not end by itself, the reason; then its results."""
    took = f", {results['took_s']:.0f} s" if "took_s" in results else ""
    reason = f": {results['reason']}" if results.get("reason") else ""
    return [f"-- {name}{took}{reason}", *importlib.import_module(f"benchmarks.gpu.steps.{name}").lines(results)]

"""The table at the end: at most 60 lines of what the steps found."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.bench import read_results
from benchmarks.report import name_machine

MOST_LINES, MOST_COLUMNS = 60, 160


def table(names: Sequence[str], folder: Path, kind: str) -> list[str]:
    """A heading and a few lines a step.

    Args:
        names: of the steps.
        folder: of their JSON files.
        kind: of device, "cuda" or "cpu".
    """
    found = {name: results for name in names if (results := read_results(folder, name, kind))}
    lines = [name_machine(results) for results in list(found.values())[:1]]
    for name, results in found.items():
        took = f", {results['took_s']:.0f} s" if "took_s" in results else ""
        reason = f": {results['reason']}" if results.get("reason") else ""
        lines.append(f"-- {name}{took}{reason}")
        lines += importlib.import_module(f"benchmarks.gpu.steps.{name}").lines(results)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"... {len(lines) - MOST_LINES + 1} lines more: {folder}/*_{kind}.json"]
    return [line[:MOST_COLUMNS] for line in lines]

"""Reports that all benchmarks share: description of the machine, tables, JSON file."""

import datetime
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from engine.runtime.errors import InputError
from engine.runtime.files import write_text


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine: device name, CPU model, threads, torch version and date."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def name_machine(results: dict[str, Any]) -> str:
    """Format the description of the machine in a benchmark's results as a line of text."""
    return f"{results['device']}, {results['threads']} CPU threads, torch {results['torch']}, {results['date']}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows with right-aligned columns."""
    return tabulate([header, *rows], tablefmt="plain", colglobalalign="right", disable_numparse=True)


def replace_section(path: Path, begin: str, section: str, end: str) -> str:
    """Return a document with another text between two markers, which stand on lines of their own.

    Raises:
        InputError: a marker is missing.
    """
    before, found_begin, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise InputError(f"{path}: found no {begin.strip()} or {end.strip()}, expected both on their own lines")
    return f"{before}{begin}{section}{end}{after}"


def publish(results: dict[str, Any], text: str, path: Path) -> dict[str, Any]:
    """Print the results as text, write them as JSON, and return them."""
    print(text)
    write_text(path, json.dumps(results, indent=2) + "\n")
    print(f"\nwrote {path}")
    return results

"""Device, time and folders of a step, and its JSON file, which is complete after each row."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import describe_lack_of_memory
from engine.runtime.errors import is_out_of_memory
from engine.runtime.files import write_text

Row = dict[str, Any]
LEFT_OUT = "left out: no time"


def results_path(folder: Path, step: str, kind: str) -> Path:
    """Return the path of a step's JSON file for a kind of device, "cuda" or "cpu"."""
    return folder / f"{step}_{kind}.json"


def read_results(folder: Path, step: str, kind: str) -> dict[str, Any] | None:
    """Read the results of a step; None if it was not run."""
    path = results_path(folder, step, kind)
    return json.loads(path.read_text()) if path.exists() else None


@dataclass
class Bench:
    """Device, time, folders and results of a step.

    Args:
        step: name of the step.
        gpu: device as in --gpu: number of a CUDA device, or cpu.
        machine: description of the machine (``benchmarks.report.describe_machine``).
        output: folder of the JSON files.
        scratch: folder for all other files.
        data: dataset folder of MSD hippocampus, if any.
        seconds: time limit of the step.
    """

    step: str
    gpu: str
    machine: dict[str, Any]
    output: Path
    scratch: Path
    data: Path | None
    seconds: float
    results: dict[str, Any] = field(init=False)
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.seconds
        self.results = {**self.machine, "step": self.step, "reduced": self.reduced, "rows": []}

    @property
    def device(self) -> torch.device:
        """Device to measure on."""
        return torch.device("cpu") if self.gpu == "cpu" else torch.device("cuda", int(self.gpu))

    @property
    def reduced(self) -> bool:
        """True in the rehearsal: on a CPU, with sizes that take seconds."""
        return self.gpu == "cpu"

    def seconds_left(self) -> float:
        """Return the seconds until the step is stopped."""
        return self.deadline - time.monotonic()

    def record(self, **row: Any) -> None:
        """Add a row to the file."""
        self.results["rows"].append(row)
        self._write()

    def note(self, **facts: Any) -> None:
        """Add facts about the whole step to the file."""
        self.results.update(facts)
        self._write()

    def attempt(self, row: Row, measure: Callable[[], Row], least_s: float = 0) -> None:
        """Record a row with its measurement, or with the reason why there is none.

        Args:
            row: entries that identify the row.
            measure: function that returns the other entries, which may include a "reason"; an exception becomes one.
            least_s: seconds that must be left; otherwise the row is left out.
        """
        if self.seconds_left() < least_s:
            found: Row = {"reason": LEFT_OUT}
        else:
            try:
                found = {"reason": None, **measure()}
            except Exception as error:
                found = {"reason": describe_failure(error)}
        self.record(**row, **found)

    def attempt_note(self, name: str, measure: Callable[[], Any]) -> None:
        """Add one fact to the file or, if it cannot be measured, the reason as <name>_reason."""
        try:
            self.note(**{name: measure()})
        except Exception as error:
            self.note(**{f"{name}_reason": describe_failure(error)})

    def _write(self) -> None:
        write_text(results_path(self.output, self.step, self.device.type), json.dumps(self.results, indent=1) + "\n")


def describe_failure(error: BaseException) -> str:
    """Describe in one line why there is no measurement."""
    if is_out_of_memory(error):
        return describe_lack_of_memory(error)
    text = str(error).strip().partition("\n")[0]
    return f"failed: {type(error).__name__}: {text}"

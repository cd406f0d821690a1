"""Training of the runs of an experiment by main_train.py, each a process with a folder of its own."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import torch

from benchmarks.report import describe_machine
from engine.runtime.files import BEST, LAST, PREVIOUS
from engine.weights.checkpoints import load_checkpoint, save_checkpoint
from experiments.experiment import Experiment
from experiments.results import ROOT

FINAL = "final_model.pth"
TAIL = 2000  # bytes at the end of a log among which the message of a failure is looked for


@dataclass(frozen=True)
class Trainer:
    """Training of single runs by main_train.py, each in its folder.

    Args:
        experiment: the experiment.
        root: dataset folder.
        dataset: description of the dataset.
        gpu: device.
        jobs: runs at a time.
        output: folder of the runs.
        lock: file descriptor that the training processes keep open.
        commit: commit of the code.
    """

    experiment: Experiment
    root: Path
    dataset: str
    gpu: str
    jobs: int
    output: Path
    lock: int
    commit: str

    def folder(self, arm: str, seed: int) -> Path:
        """Return the folder of a run."""
        return self.output / f"{''.join(letter if letter.isalnum() else '_' for letter in arm)}_{seed}"

    def command(self, arm: str, seed: int) -> list[str]:
        """Compose the command of a run, with paths relative to the repository's root, where it runs."""
        root, output = (os.path.relpath(path, ROOT) for path in (self.root, self.folder(arm, seed)))
        data = ["--root", root, "--dataset", self.dataset, "--output", output]
        return ["main_train.py", *data, *self.experiment.arms[arm], "--seed", str(seed), "--gpu", self.gpu]

    def start(self, arm: str, seed: int) -> subprocess.Popen[bytes]:
        """Start a run, or resume it where it was stopped; its output is appended to a log beside its folder."""
        folder = self.folder(arm, seed)
        resume = ["--resume"] if (folder / LAST).exists() or (folder / PREVIOUS).exists() else []
        if not resume:
            rmtree(folder, ignore_errors=True)
        threads = str(max(1, len(os.sched_getaffinity(0)) // self.jobs))
        with open(self.log(arm, seed), "ab") as log:
            return subprocess.Popen(
                [sys.executable, *self.command(arm, seed), *resume],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                start_new_session=True,  # a Ctrl-C reaches the runs through this process alone
                pass_fds=[self.lock],
            )

    def log(self, arm: str, seed: int) -> Path:
        """Return the log of a run."""
        return self.folder(arm, seed).with_suffix(".log")

    def describe_failure(self, arm: str, seed: int, status: int) -> str:
        """Describe the end of a run that failed: its signal, if any, and the last line of its log."""
        with open(self.log(arm, seed), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        if status < 0:
            last = f" after the line {lines[-1]!r}" if lines else ""
            return f"killed by {signal.Signals(-status).name}{last}, see {self.log(arm, seed)}"
        return lines[-1] if lines else f"exit status {status}"


def keep_final_weights(folder: Path) -> None:
    """Reduce the checkpoints of a finished run to its final weights, those that were scored."""
    content = load_checkpoint(folder / LAST, "--output")
    save_checkpoint(
        folder / FINAL, {key: content[key] for key in ("model", "config", "description", "split", "iteration")}
    )
    for path in (*folder.glob("weights_*.pth"), folder / BEST, folder / PREVIOUS, folder / LAST):
        path.unlink(missing_ok=True)


def read_dice(path: Path) -> list[tuple[str, str, float | None]]:
    """Read (case, class, Dice) from the dice.json of a run, without its means; None for a class that is absent."""
    cases = json.loads(path.read_text())["cases"]
    return [(case, label, value) for case, dice in cases.items() for label, value in dice.items() if label != "mean"]


def describe_device(gpu: str) -> str:
    """Name the device and the version of PyTorch."""
    machine = describe_machine(torch.device("cpu" if gpu == "cpu" else f"cuda:{gpu}"))
    return f"{machine['device']}, torch {machine['torch']}"

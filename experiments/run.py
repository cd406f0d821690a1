"""Run an experiment: train each of its arms with each seed by main_train.py, and collect the Dice of every case.

    python -m experiments.run masks --root ../shared/data/msd_hippocampus --seeds 3 --budget_h 2 --jobs 2

An experiment is a table of arms, experiments/<name>/arms.toml. Runs go seed by seed, so that the arms that are finished
at any time are balanced. The same command again goes on, in the middle of a run if it was stopped there. Results are
written to experiments/<name>/<scale>: results.csv (a row per case and class) and runs.json (commands, commit, devices,
seconds). python -m experiments.report <name> makes table and figure from them.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from shutil import rmtree

from engine.runtime.arguments import hours, number
from engine.runtime.errors import STOPPED, InputError, OneLineParser, run
from engine.runtime.files import LAST, PREVIOUS, make_output_folder
from engine.runtime.stop_requests import StopRequests
from experiments.experiment import FOLDER, NAMES, SCALES, Experiment, read_experiment
from experiments.measures import MEASURES
from experiments.results import ROOT, Results, digest_code, digest_data, find_commit

LOCK = "lock"
TAIL = 2000  # bytes at the end of a log among which the message of a failure is looked for


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("experiments.run", description=__doc__)
    parser.add_argument("experiment", choices=NAMES, metavar="EXPERIMENT", help=", ".join(NAMES))
    parser.add_argument("--root", metavar="DIR", required=True, help="dataset folder, as for main_train.py")
    parser.add_argument("--dataset", metavar="FILE", help="its description (default: MSD hippocampus)")
    parser.add_argument("--scale", default="standard", choices=SCALES, help="size of networks, crops and training")
    parser.add_argument("--seeds", type=number(int, 1), default=5, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--budget_h", type=hours, metavar="HOURS", help="stop after this time, to go on later")
    parser.add_argument(
        "--jobs", type=number(int, 1), default=1, metavar="N", help="runs at a time, which share the CPU"
    )
    parser.add_argument("--gpu", default="cpu", metavar="DEVICE", help="number of a CUDA device, or cpu")
    parser.add_argument("--output", metavar="DIR", default="runs/experiments", help="folder for checkpoints and logs")
    parser.add_argument(
        "--results", metavar="DIR", help="folder for the results (default: experiments/EXPERIMENT/SCALE)"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Run what is missing until it is finished, stopped, or out of time."""
    experiment = read_experiment(args.experiment, args.scale)
    dataset = args.dataset or experiment.dataset
    identity = {
        "experiment": experiment.name,
        "scale": args.scale,
        "arms": {arm: shlex.join(flags) for arm, flags in experiment.arms.items()},
        "dataset": Path(dataset).read_text() if Path(dataset).is_file() else dataset,
        "data": digest_data(Path(args.root)),
        "code": digest_code(),
    }
    output = Path(args.output) / f"{experiment.name}_{args.scale}"
    make_output_folder(output)
    with locked(output) as lock, StopRequests(args.budget_h, limit="--budget_h") as stop:
        results = Results(Path(args.results or FOLDER / experiment.name / args.scale), identity, list(experiment.arms))
        trainer = Trainer(experiment, args.root, dataset, args.gpu, args.jobs, output, lock)
        missing = [
            (arm, seed) for seed in range(args.seeds) for arm in experiment.arms if not results.is_finished(arm, seed)
        ]
        total = args.seeds * len(experiment.arms)
        print(f"{experiment.name}: {total - len(missing)} of {total} runs are finished")
        run_all(missing, trainer, results, stop)


@contextmanager
def locked(output: Path) -> Iterator[int]:
    """Hold a lock on the experiment's folder, in this process and those that it starts, until the last has ended.

    Raises:
        InputError: another process holds it.
    """
    with open(output / LOCK, "w") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"--output: found a process that runs in {output}, expected it to end first") from error
        yield file.fileno()


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
    """

    experiment: Experiment
    root: str
    dataset: str
    gpu: str
    jobs: int
    output: Path
    lock: int

    def folder(self, arm: str, seed: int) -> Path:
        """Return the folder of a run."""
        return self.output / f"{''.join(letter if letter.isalnum() else '_' for letter in arm)}_{seed}"

    def command(self, arm: str, seed: int) -> list[str]:
        """Compose the command of a run."""
        data = ["--root", self.root, "--dataset", self.dataset, "--output", str(self.folder(arm, seed))]
        return ["main_train.py", *data, *self.experiment.arms[arm], "--seed", str(seed), "--gpu", self.gpu]

    def start(self, arm: str, seed: int) -> subprocess.Popen[bytes]:
        """Start a run, or resume it where it was stopped; its output goes to a log beside its folder."""
        folder = self.folder(arm, seed)
        resume = ["--resume"] if (folder / LAST).exists() or (folder / PREVIOUS).exists() else []
        if not resume:
            rmtree(folder, ignore_errors=True)
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        with open(folder.with_suffix(".log"), "ab") as log:
            return subprocess.Popen(
                [sys.executable, *self.command(arm, seed), *resume],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                start_new_session=True,  # a Ctrl-C reaches the runs through this process alone
                pass_fds=[self.lock],
            )

    def failure(self, arm: str, seed: int) -> str:
        """Return the last line of a run's log."""
        with open(self.folder(arm, seed).with_suffix(".log"), "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - TAIL))
            lines = log.read().decode(errors="replace").splitlines()
        return lines[-1].strip() if lines else "no message"


def run_all(missing: list[tuple[str, int]], trainer: Trainer, results: Results, stop: StopRequests) -> None:
    """Run everything that is missing, a few runs at a time; a request to stop lets the runs save their state.

    Raises:
        Stopped: a request to stop, or the end of the budget.
        InputError: a run failed.
    """
    queue, started = iter(missing), dict[tuple[str, int], float]()
    running: dict[Future[int], tuple[tuple[str, int], subprocess.Popen[bytes]]] = {}
    failures: list[str] = []
    with stop.deferred(), ThreadPoolExecutor(trainer.jobs) as pool:
        try:
            while True:
                while len(running) < trainer.jobs and stop.reason is None and (item := next(queue, None)) is not None:
                    process, started[item] = trainer.start(*item), time.perf_counter()
                    running[pool.submit(process.wait)] = item, process
                if not running:
                    break
                done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                if stop.reason is not None:
                    terminate(running.values())
                    done, _ = wait(running)
                for future in done:
                    item, _ = running.pop(future)
                    seconds = time.perf_counter() - started[item]
                    if failure := finish(item, future.result(), seconds, trainer, results):
                        failures.append(failure)
        except BaseException:
            terminate(running.values())
            raise
    if failures:
        raise InputError("\n".join(failures))
    stop.raise_if_requested()


def terminate(running: Iterable[tuple[object, subprocess.Popen[bytes]]]) -> None:
    """Ask all runs to save their state and end."""
    for _, process in running:
        process.terminate()


def finish(item: tuple[str, int], status: int, seconds: float, trainer: Trainer, results: Results) -> str | None:
    """Collect the results of a run that has ended; a failure is returned as a line."""
    arm, seed = item
    folder = trainer.folder(arm, seed)
    if status not in (0, STOPPED):
        return f"{arm}, seed {seed}: {trainer.failure(arm, seed)}"
    command = shlex.join(trainer.command(arm, seed))
    results.note(arm, seed, seconds=seconds, command=command, commit=find_commit(), device=describe_device(trainer.gpu))
    if status == 0:
        tables = {name: MEASURES[name](folder) for name in trainer.experiment.measures}
        results.add(arm, seed, read_dice(folder / "dice.csv"), tables)
        for checkpoint in (LAST, PREVIOUS):
            (folder / checkpoint).unlink(missing_ok=True)
        print(f"{arm}, seed {seed}: {seconds:.0f} s", flush=True)
    return None


def read_dice(path: Path) -> list[tuple[str, str, float | None]]:
    """Read (case, class, Dice) from the dice.csv of a run, without its means."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        (row["case"], label, float(value) if value else None)
        for row in rows[:-1]
        for label, value in row.items()
        if label not in ("case", "mean")
    ]


def describe_device(gpu: str) -> str:
    """Name the device and the version of PyTorch."""
    import torch

    from benchmarks.report import describe_machine

    machine = describe_machine(torch.device("cpu" if gpu == "cpu" else f"cuda:{gpu}"))
    return f"{machine['device']}, torch {machine['torch']}"


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

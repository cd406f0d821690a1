"""Run an experiment: train each of its arms with each seed by main_train.py, and collect the Dice of every case.

    python -m experiments.run masks --root ../shared/data/msd_hippocampus --seeds 3 --budget_h 2 --jobs 2

An experiment is a table of arms, experiments/<name>/arms.toml. Runs go seed by seed, so that the arms that are finished
at any time are balanced. The same command resumes a stopped experiment, in the middle of a run. Results are written to
experiments/<name>/<scale>: results.csv (a row per case and class) and runs.json (commands, commit, devices, seconds).
python -m experiments.report <name> makes table and figures from them.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from engine.runtime.arguments import hours, number
from engine.runtime.child_processes import locked
from engine.runtime.errors import STOPPED, InputError, OneLineParser, run
from engine.runtime.stop_requests import StopRequests
from engine.runtime.versions import find_commit
from experiments.experiment import FOLDER, NAMES, SCALES, read_experiment
from experiments.measures import MEASURES
from experiments.results import Results, digest_code, digest_data, digest_files, digest_text
from experiments.trainer import Trainer, describe_device, keep_final_weights, read_dice


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("experiments.run", description=__doc__)
    parser.add_argument("experiment", choices=NAMES, metavar="EXPERIMENT", help=", ".join(NAMES))
    parser.add_argument("--root", metavar="DIR", required=True, help="dataset folder, as for main_train.py")
    parser.add_argument("--dataset", metavar="FILE", help="its description (default: that of the experiment)")
    parser.add_argument("--scale", default="standard", choices=SCALES, help="size of networks, crops and training")
    parser.add_argument("--seeds", type=number(int, 1), default=5, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument(
        "--budget_h", type=hours, metavar="HOURS", help="stop after this time; the same command resumes"
    )
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
    if not experiment.arms:
        raise InputError(f"--scale: found no arms of {experiment.name} at {args.scale}, expected another scale")
    root, dataset = Path(args.root).resolve(), args.dataset or experiment.dataset
    identity = {
        "experiment": experiment.name,
        "scale": args.scale,
        "arms": {arm: shlex.join(flags) for arm, flags in experiment.arms.items()},
        "data": digest_data(root, dataset),
        "code": digest_code(),
        "device": "cpu" if args.gpu == "cpu" else "cuda",
    }
    if files := digest_files(flag for flags in experiment.arms.values() for flag in flags):
        identity["files"] = files
    # Runs of anything else must not be resumed, so their folder has another name.
    output = Path(args.output).resolve() / f"{experiment.name}_{args.scale}_{digest_text(json.dumps(identity))}"
    folder = Path(args.results or FOLDER / experiment.name / args.scale)
    with locked(output, "--output") as lock, locked(folder, "--results"):
        results = Results(folder, identity, list(experiment.arms))
        trainer = Trainer(experiment, root, dataset, args.gpu, args.jobs, output, lock, find_commit())
        runs = [(arm, seed) for seed in range(args.seeds) for arm in experiment.arms]
        missing = [item for item in runs if not results.is_finished(*item)]
        print(f"{experiment.name}: {len(runs) - len(missing)} of {len(runs)} runs are finished", flush=True)
        with StopRequests(args.budget_h, limit="--budget_h") as stop:
            run_all(missing, trainer, results, stop)


def run_all(missing: list[tuple[str, int]], trainer: Trainer, results: Results, stop: StopRequests) -> None:
    """Run everything that is missing, a few runs at a time; a request to stop lets the runs save their state.

    Raises:
        Stopped: a request to stop, or the end of the budget.
        InputError: a run failed; those beside it have ended, and no others were started.
    """
    queue, started = iter(missing), dict[tuple[str, int], float]()
    running: dict[Future[int], tuple[tuple[str, int], subprocess.Popen[bytes]]] = {}
    failures: list[str] = []
    with ThreadPoolExecutor(trainer.jobs) as pool:
        try:
            while True:
                while len(running) < trainer.jobs and not failures and stop.reason is None:
                    if (item := next(queue, None)) is None:
                        break
                    check_code(results)
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
                    status, seconds = future.result(), time.perf_counter() - started[item]
                    if stop.reason is not None and status == -signal.SIGTERM:  # so early that nothing was to be saved
                        status = STOPPED
                    failures += finish(*item, status, seconds, trainer, results)
        except BaseException:
            terminate(running.values())
            raise
    if failures:
        raise InputError("\n".join(failures))
    stop.raise_if_requested()


def check_code(results: Results) -> None:
    """Raise InputError if the training code was changed while the experiment runs."""
    if (found := digest_code()) != results.identity["code"]:
        raise InputError(
            f"the training code has changed since the start (from {results.identity['code']} to {found}), expected it "
            "unchanged while an experiment runs, as in a git worktree of its own"
        )


def terminate(running: Iterable[tuple[object, subprocess.Popen[bytes]]]) -> None:
    """Ask all runs to save their state and end."""
    for _, process in running:
        process.terminate()


def finish(arm: str, seed: int, status: int, seconds: float, trainer: Trainer, results: Results) -> list[str]:
    """Collect the results of a run that has ended; a failure is returned as a line."""
    folder = trainer.folder(arm, seed)
    if status not in (0, STOPPED):
        return [f"{arm}, seed {seed}: {trainer.describe_failure(arm, seed, status)}"]
    check_code(results)
    command, device = shlex.join(trainer.command(arm, seed)), describe_device(trainer.gpu)
    results.note(arm, seed, seconds, command=command, commit=trainer.commit, device=device, jobs=trainer.jobs)
    if status == 0:
        tables = {name: MEASURES[name](folder) for name in trainer.experiment.measures}
        results.add(arm, seed, read_dice(folder / "dice.json"), tables)
        keep_final_weights(folder)
        print(f"{arm}, seed {seed}: {seconds:.0f} s", flush=True)
    return []


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

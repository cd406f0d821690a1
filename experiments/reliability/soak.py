"""Kill a small training run repeatedly, resume it each time, and compare its end with that of an undisturbed run.

    python -m experiments.reliability.soak

Real processes and real signals, at random moments: SIGKILL at any time, SIGKILL while a checkpoint is being written,
SIGTERM and Ctrl-C to the whole process group. After some of the stops the last checkpoint is damaged as well. Weights,
optimiser state and scores must be equal bit for bit, and TensorBoard must contain every step exactly once. Writes
soak.json; the exit status is 1 if anything differs.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import describe_machine, publish
from engine.runtime.arguments import number
from engine.runtime.errors import STOPPED, OneLineParser, run
from engine.runtime.files import BEST, LAST, PREVIOUS
from experiments.reliability.compare import differences
from tools.make_phantoms import make_dataset

ROOT = Path(__file__).parents[2]
LOG = "output.txt"
RESULT = Path(__file__).with_name("soak.json")
# bf16 autocast, two data-loading processes, random crops and augmentation, warm-up and cosine, eight evaluations.
RECIPE = (
    *("--network", "REP3D", "--feat_size", "8", "8", "8", "8", "--kernel_size", "5", "--roi_size", "48", "48", "48"),
    *("--amp", "bf16", "--num_workers", "2", "--cache_rate", "0.5", "--lr", "0.004", "--gpu", "cpu", "--overlap", "0"),
    *("--max_iter", "40", "--eval_step", "5"),
)
# Ways to stop a run, with their shares of all stops.
WAYS = {"SIGKILL": 0.4, "SIGKILL while writing": 0.3, "SIGTERM": 0.2, "Ctrl-C": 0.1}
DAMAGED = 0.2  # share of the stops after which the last checkpoint is damaged, if there is a previous one
EARLIER = 0.6  # share of an undisturbed run's duration, within which most stops come before the end
PATIENCE_S = 600  # a process that takes longer is taken to hang
# The last phrase in the output of a process, and its phase at that moment.
PHASES = {
    "checking cases": "checking the data",
    "caching cases": "caching",
    "training:": "training",
    "validation:": "validating",
    "best mean Dice": "ending",
}


@dataclass
class Tally:
    """Counts of the events so far.

    Args:
        stops: stops by way of stopping.
        phases: stops by phase of the run, as far as its output shows it.
        statuses: exit statuses of the runs that were asked to stop.
        fallbacks: resumed runs that fell back on the previous checkpoint.
        damaged: checkpoints that were damaged on purpose.
        ends: runs that ended by themselves after being stopped, with their differences.
    """

    stops: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    fallbacks: int = 0
    damaged: int = 0
    ends: list[dict[str, Any]] = field(default_factory=list)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("soak", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=number(int, 1), default=40, metavar="N", help="least number of stops")
    parser.add_argument("--seed", type=number(int, 0), default=0, metavar="N", help="random seed of the moments")
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE", help="JSON file to write")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Train once undisturbed, then disturb further runs to their ends until there were enough stops."""
    rng, tally, began = random.Random(args.seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_dataset(folder / "data", train=3, val=2, seed=0, scale=3)
        started = time.monotonic()
        status, _ = finish(start(folder, folder / "undisturbed"), folder)
        assert status == 0, "the undisturbed run failed"
        longest = time.monotonic() - started
        while sum(tally.stops.values()) < args.kills:
            output = folder / f"run {len(tally.ends)}"
            disturb(folder, output, args.kills, longest, rng, tally)
            differing = differences(folder / "undisturbed", output)
            tally.ends.append({"stops so far": sum(tally.stops.values()), "differences": differing})
            print(f"{sum(tally.stops.values())} stops, run {len(tally.ends)} ended: {differing or 'equal'}", flush=True)
    results = {
        **describe_machine(torch.device("cpu")),
        "seed": args.seed,
        "stops": dict(tally.stops),
        "phases": dict(tally.phases),
        "statuses of runs asked to stop": dict(tally.statuses),
        "checkpoints damaged": tally.damaged,
        "fallbacks to the checkpoint before": tally.fallbacks,
        "runs": tally.ends,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    text = "\n".join(f"{name}: {value}" for name, value in results.items())
    publish(results, text, args.result)
    if any(end["differences"] for end in tally.ends):
        raise SystemExit(1)


def disturb(folder: Path, output: Path, kills: int, longest: float, rng: random.Random, tally: Tally) -> None:
    """Start a run, then stop and resume it until it ends by itself."""
    while True:
        process = start(folder, output)
        way = rng.choices(list(WAYS), list(WAYS.values()))[0]
        enough = sum(tally.stops.values()) >= kills
        stopped = not enough and stop(process, way, output, rng, longest)
        status, text = finish(process, folder)
        tally.fallbacks += "going on from" in text
        phase = phase_of(text)
        # Before the signal handlers are installed and after they are removed, Python ends with a traceback of its own.
        assert "Traceback" not in text or status == -signal.SIGKILL or phase in ("starting", "ending"), text
        if status == 0:
            return
        assert stopped, f"status {status}, though nothing stopped the run: {text}"
        tally.stops[way] += 1
        tally.phases[phase] += 1
        if way in ("SIGTERM", "Ctrl-C"):
            tally.statuses[str(status)] += 1
            ends = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT) if phase in ("starting", "ending") else ()
            assert status in (STOPPED, *ends), text
        if (output / PREVIOUS).exists() and (output / LAST).exists() and rng.random() < DAMAGED:
            damage(output / LAST, rng)
            tally.damaged += 1


def start(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start a training process in a process group of its own; its output goes to a log in ``folder``."""
    begun = (output / LAST).exists() or (output / PREVIOUS).exists()
    data = ("--root", folder / "data", "--dataset", ROOT / "experiments" / "demo" / "dataset.json", "--output", output)
    words = [sys.executable, "main_train.py", *map(str, data), *RECIPE, *(["--resume"] if begun else [])]
    with open(folder / LOG, "wb") as log:
        return subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], folder: Path) -> tuple[int, str]:
    """Wait for the end of a process; return its exit status and its whole output."""
    status = process.wait(timeout=PATIENCE_S)
    return status, (folder / LOG).read_text(errors="replace")


def stop(process: subprocess.Popen[bytes], way: str, output: Path, rng: random.Random, longest: float) -> bool:
    """Stop a process in the given way at a random moment; return whether it was still running."""
    if way == "SIGKILL while writing":
        hit = wait_for_writing(process, output, rng.randint(1, 6))
    else:
        hit = sleep_while_running(process, rng.uniform(0, EARLIER * longest))
    if not hit:
        return False
    number = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}.get(way, signal.SIGKILL)
    if number == signal.SIGKILL:
        process.kill()  # this process only: its data-loading processes have to notice by themselves
    else:
        os.killpg(process.pid, number)
    return True


def sleep_while_running(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for some seconds or for the end of the process; return whether it is still running."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def wait_for_writing(process: subprocess.Popen[bytes], output: Path, times: int) -> bool:
    """Wait until a checkpoint is being written for the ``times``-th time; return whether the process still runs."""
    unfinished = [output / f".{name}.part" for name in (LAST, BEST)]
    seen = False
    while process.poll() is None:
        writing = any(path.exists() for path in unfinished)
        times -= writing and not seen
        if not times:
            return True
        seen = writing
        time.sleep(0.0005)
    return False


def phase_of(text: str) -> str:
    """Name the phase in which a process ended, as far as its output shows it."""
    shown = re.findall("|".join(PHASES), text)
    return PHASES[shown[-1]] if shown else "starting"


def damage(path: Path, rng: random.Random) -> None:
    """Truncate a file, or flip one of its bits."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if rng.random() < 0.5:
        del content[place:]
    else:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

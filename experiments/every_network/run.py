"""Train every network for a few iterations on MSD hippocampus with main_train.py, and predict with test_seg.py.

    python -m experiments.every_network.run --root ../shared/data/msd_hippocampus --output runs/every_network

Shows that each network runs under the same two commands, as published and at full width; a few iterations are no
measure of its accuracy. Writes results.json and prints the table of README.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from engine.runtime.arguments import number
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import make_output_folder, write_text
from networks import NETWORKS

DESCRIPTION = Path(__file__).parents[1] / "hippocampus" / "dataset.json"
CASES = {"Tr": 24, "Val": 4}
# A crop size that suits every network; 1 mm voxels.
ROI_SIZE = (32, 64, 32)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("every_network", description=__doc__.splitlines()[0])
    parser.add_argument("--root", metavar="DIR", required=True, help="dataset folder")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for runs and predictions")
    names = f"some of {', '.join(NETWORKS)} (default: all)"
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help=names)
    parser.add_argument("--max_iter", type=number(int, 1), default=20, metavar="N", help="training iterations")
    parser.add_argument("--gpu", default="cpu", metavar="DEVICE", help="number of a CUDA device, or cpu")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Try one network after the other; a failure is recorded in its row."""
    output = Path(args.output)
    make_output_folder(output)
    data = output / "data"
    choose_cases(Path(args.root), data)
    results = output / "results.json"
    rows = json.loads(results.read_text()) if results.exists() else {}  # rows of other networks are kept
    for name in tqdm(args.networks):
        rows[name] = try_network(name, data, output / name, args)
        write_text(results, json.dumps(rows, indent=2) + "\n")
    print("| network | training, s | prediction, s | mean Dice | |\n|---|---|---|---|---|")
    for name, row in rows.items():
        cells = (
            f"{row[key]:.{digits}f}" if key in row else ""
            for key, digits in (("train_s", 0), ("predict_s", 0), ("dice", 2))
        )
        print(f"| `{name}` | {' | '.join(cells)} | {row.get('failure', '')} |")


def choose_cases(root: Path, data: Path) -> None:
    """Copy the first training and validation cases."""
    for part, count in CASES.items():
        for kind in ("images", "labels"):
            files = sorted((root / f"{kind}{part}").glob("*.nii.gz"))[:count]
            if len(files) < count:
                raise InputError(f"--root: found {len(files)} files in {root / (kind + part)}, expected {count}")
            (data / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copyfile(file, data / f"{kind}{part}" / file.name)


def try_network(name: str, data: Path, folder: Path, args: argparse.Namespace) -> dict[str, float | str]:
    """Measure the seconds of both commands and the mean Dice; a failure is the last line of its error."""
    common = ["--root", str(data), "--gpu", args.gpu]
    sides = [str(side) for side in ROI_SIZE]
    train = [
        *("main_train.py", *common, "--output", str(folder / "run"), "--dataset", str(DESCRIPTION), "--network", name),
        *("--roi_size", *sides, "--max_iter", str(args.max_iter), "--eval_step", str(args.max_iter)),
        *("--crop_sample", "1", "--lr", "1e-3", "--cache_rate", "1"),
    ]
    weights = str(folder / "run" / "best_metric_model.pth")
    predict = ["test_seg.py", *common, "--output", str(folder / "predictions"), "--trained_weights", weights]
    row: dict[str, float | str] = {}
    shutil.rmtree(folder, ignore_errors=True)  # left by an earlier run
    for column, command in (("train_s", train), ("predict_s", predict)):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        row[column] = round(time.perf_counter() - started, 1)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return {**row, "failure": lines[-1]}
    dice = json.loads((folder / "predictions" / "dice.json").read_text())["mean"]["mean"]
    shutil.rmtree(folder / "run")  # gigabytes of weights
    return {**row, "dice": round(dice, 4)}


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

"""Write one HTML page about a training run: curves, scores, cases, masks, times, arguments, versions.

    python -m tools.report runs/amos predictions/amos

The page needs nothing else, neither other files nor a network. With a folder of predictions it shows their Dice (and
other measures, if there is a scores.csv) and draws the best and the worst cases; without, it shows the Dice of the
latest validation.
"""

import argparse
import os
import sys
from pathlib import Path

from engine.report.page import check_replaceable
from engine.report.report import make_report
from engine.report.run_folder import read_predictions, read_run
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import make_output_folder, write_text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("report", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="output folder of main_train.py")
    parser.add_argument("predictions", metavar="PREDICTIONS", nargs="?", help="output folder of test_seg.py")
    parser.add_argument("--output", metavar="FILE", help="page to write (default: report.html in RUN)")
    root = "dataset folder with the images of the predictions (default: where they were)"
    parser.add_argument("--root", metavar="DIR", help=root)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read both folders, and write the page."""
    for name in ("run", "predictions"):
        if (folder := getattr(args, name)) is not None and not os.path.isdir(folder):
            raise InputError(f"{name.upper()}: {folder} not found, expected a folder")
    if args.root is not None and args.predictions is None:
        raise InputError("--root: found it without PREDICTIONS, expected both: it has the images of the predictions")
    path = Path(args.output or Path(args.run, "report.html"))
    check_replaceable(path)
    predictions = None if args.predictions is None else read_predictions(Path(args.predictions))
    page = make_report(read_run(Path(args.run)), predictions, None if args.root is None else Path(args.root))
    make_output_folder(path.parent)
    write_text(path, page)
    print(f"{path}: {os.path.getsize(path) / 2**20:.1f} MB")


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

"""Export a trained network as a MONAI bundle, which runs wherever MONAI is installed.

    python -m tools.export_bundle --weights runs/amos/best_metric_model.pth --output bundles/amos_rep3d

The bundle holds the weights in their deployed form and all code that it needs. Before it gets its name it is run on a
synthetic volume, in a process that does not see this repository, and its label map is compared with that of
test_seg.py. docs/deploy.md says how it is used.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import check_absent, new_output

FLAG = "--weights"
OTHER_TASKS = ("deepedit", "deepgrow", "detection", "classification")  # of MONAI Label, by the name of the folder


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("export_bundle", description=__doc__.splitlines()[0])
    parser.add_argument(FLAG, metavar="FILE", required=True, help="checkpoint of main_train.py")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder of the bundle, a new one, named like it")
    parser.add_argument("--version", default="0.1.0", help="version of the bundle")
    parser.add_argument("--authors", default="not stated", help="who has trained the network")
    text = "text file with the licence of the training data (default: a text that it was not stated)"
    parser.add_argument("--data_license", metavar="FILE", help=text)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the bundle under another name, test it, and rename it."""
    output = Path(os.path.abspath(args.output))
    check_absent(output, "--output")
    data_license = None if args.data_license is None else read_license(Path(args.data_license))
    from engine.weights.load_network import load_trained
    from integrations.monai_bundle.bundle import About, write_bundle
    from integrations.monai_bundle.configs import check_texts
    from integrations.monai_bundle.self_test import check_packages, self_test

    check_packages()
    trained = load_trained(Path(args.weights), FLAG, deploy=True)
    check_texts(trained.config, trained.description, f"{FLAG}: {args.weights}")
    if trained.was_folded:
        print(f"{args.weights} has the weights of training; the bundle has them folded for prediction")
    if any(task in output.name.lower() for task in OTHER_TASKS):
        print(f"warning: --output: MONAI Label takes a bundle named {output.name} for one of another task")
    with new_output(output, "--output") as folder, TemporaryDirectory(prefix="export_bundle_") as scratch:
        write_bundle(folder, trained, About(output.name, args.version, args.authors, data_license))
        print("running the bundle on a synthetic volume, and comparing with test_seg.py ...", flush=True)
        print(f"test of the bundle: {self_test(folder, trained, Path(scratch))}")
    print(f"{args.output}: {sum(path.stat().st_size for path in output.rglob('*')) / 2**20:.1f} MB")


def read_license(path: Path) -> str:
    """Read a text file; InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--data_license: {path} cannot be read ({error.strerror}), expected a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--data_license: {path} is no text in UTF-8, expected a text file") from error


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

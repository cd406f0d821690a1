"""Make a folder for colleagues from a model that nnU-Net trained: masks folded into the kernels, no trainer needed.

The output holds the plans, the dataset's description and the weights of each fold, nothing for going on with training.
nnUNetv2_predict_from_modelfolder predicts with it where nnunetv2 and rep3d are installed.
"""

import argparse
import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rep3d.whole_files import complete_or_absent
from torch.serialization import safe_globals

from .adapter import CLASS, NetworkFromPlans
from .errors import OneLineParser, PlansError, run
from .files import creating, read_json, write_json

NEEDED = ("network_weights", "init_args", "inference_allowed_mirroring_axes")
FINAL = "checkpoint_final.pth"  # what nnU-Net predicts with unless told otherwise
STOCK_TRAINER = "nnUNetTrainerNoDeepSupervision"  # builds what the plans say, like the trainer with the recipe
# NumPy's numbers, which nnU-Net stores beside the weights; reading them runs no other code.
NUMPY_SCALARS: list[Any] = [
    *(np.float64().__reduce__()[0], np.dtype),
    *(np.dtypes.Float32DType, np.dtypes.Float64DType, np.dtypes.Int64DType),
]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("rep3d.nnunet.deploy", description=__doc__)
    trained = "folder in nnUNet_results, named TRAINER__PLANS__CONFIGURATION"
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help=trained)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    file = "file of each fold (default: %(default)s)"
    parser.add_argument("--checkpoint", default=FINAL, type=_file_name, metavar="NAME", help=file)
    return parser.parse_args(argv)


def _file_name(text: str) -> str:
    if not text or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected the name of a file in the folders fold_*")
    return text


def main(args: argparse.Namespace) -> None:
    if args.output.exists():
        raise PlansError(f"--output: found {args.output}, expected no such folder")
    candidates = sorted(fold / args.checkpoint for fold in args.model.glob("fold_*"))
    paths = [path for path in candidates if path.is_file()]
    if not paths:
        raise PlansError(f"--model: found no fold_*/{args.checkpoint} in {args.model}, expected a trained model")
    plans, dataset = (read_json(args.model / name) for name in ("plans.json", "dataset.json"))
    checkpoints = {path: load_checkpoint(path) for path in paths}
    configuration = checkpoints[paths[0]]["init_args"]["configuration"]
    deployed = deploy_plans(plans, configuration, args.model)
    with creating(args.output, "--output"), complete_or_absent(args.output) as aside:
        for path, content in checkpoints.items():
            (aside / path.parent.name).mkdir(parents=True)
            network = build_folded(content, deployed, configuration, dataset, path)
            kept = {"inference_allowed_mirroring_axes": content["inference_allowed_mirroring_axes"]}
            kept |= {"trainer_name": STOCK_TRAINER, "init_args": {"configuration": configuration}}
            file = io.BytesIO()  # torch.save would hide the reason of a file that cannot be written
            torch.save({**kept, "network_weights": network.state_dict()}, file)
            (aside / path.parent.name / FINAL).write_bytes(file.getbuffer())
        write_json(aside / "plans.json", deployed)
        write_json(aside / "dataset.json", dataset)
    for path in [path for path in candidates if path not in paths]:
        print(f"left out {path.parent.name}, which has no {args.checkpoint}")
    folds = " ".join(path.parent.name.removeprefix("fold_") for path in paths)
    print(f"wrote {args.output}; predict by nnUNetv2_predict_from_modelfolder -m {args.output} -f {folds}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what a checkpoint of nnU-Net has under ``NEEDED`` without running any code from it.

    Raises:
        PlansError: the file is damaged, needs code from pickles, or is no checkpoint of nnU-Net.
    """
    try:
        check_sums(path)
        with safe_globals(NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise PlansError(f"{path}: found pickled code, which is never run, expected a plain checkpoint") from error
    except Exception as error:  # a damaged archive may raise any error
        raise PlansError(f"{path}: found a damaged file, expected a whole checkpoint") from error
    found = content if isinstance(content, dict) else {}
    origin = found.get("init_args")
    if not set(NEEDED) <= set(found) or not isinstance(origin, dict) or "configuration" not in origin:
        raise PlansError(f"{path}: found other content, expected a checkpoint that nnU-Net wrote")
    return {name: found[name] for name in NEEDED}  # without the state of the optimiser, twice as large as the weights


def check_sums(path: Path) -> None:
    """Verify the checksums in a checkpoint's archive, which PyTorch writes but does not check.

    Raises:
        BadZipFile: one differs, or the file is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(name)


def deploy_plans(plans: dict[str, Any], configuration: str, model: Path) -> dict[str, Any]:
    """Return plans with one configuration, whose network is built in its folded form.

    Raises:
        PlansError: the configuration is missing, or its network is none of rep3d.
    """
    try:
        found = plans["configurations"][configuration]
        architecture = found["architecture"]
        arguments = {**architecture["arch_kwargs"], "deploy": True}
        known = architecture["network_class_name"] == CLASS
    except (KeyError, TypeError):
        known = False
    if not known:
        raise PlansError(f"{model}: found no network of rep3d in {configuration} of plans.json, expected {CLASS}")
    folded = {**found, "architecture": {**architecture, "arch_kwargs": arguments}}
    return {**plans, "configurations": {configuration: folded}}


def build_folded(
    content: dict[str, Any], plans: dict[str, Any], configuration: str, dataset: dict[str, Any], path: Path
) -> NetworkFromPlans:
    """Build the network of deployed plans with the weights of a checkpoint, whose masks are folded into the kernels.

    Raises:
        PlansError: the weights are not those of the network.
    """
    channels, heads = count_inputs_and_outputs(plans, configuration, dataset)
    arguments = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
    try:
        network = NetworkFromPlans(channels, heads, **arguments)
        network.load_state_dict(content["network_weights"])
    except (RuntimeError, TypeError) as error:
        raise PlansError(f"{path}: found other weights, expected those of the network in plans.json") from error
    return network


def count_inputs_and_outputs(plans: dict[str, Any], configuration: str, dataset: dict[str, Any]) -> tuple[int, int]:
    """Count a network's input channels and segmentation heads as nnU-Net does."""
    try:
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise PlansError(f"found no package {package}, expected nnU-Net: pip install nnunetv2") from error
    manager = PlansManager(plans)
    try:
        channels = determine_num_input_channels(manager, configuration, dataset)
        return channels, manager.get_label_manager(dataset).num_segmentation_heads
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise PlansError("dataset.json: found no channels and labels, expected the file that nnU-Net copied") from error


if __name__ == "__main__":
    run(main, parse_args())

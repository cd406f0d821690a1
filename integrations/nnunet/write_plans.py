"""Write plans by which nnU-Net trains a network of rep3d on data that it has already preprocessed.

The new plans lie beside the old ones and differ from them in the network and its patch, rounded to sides that the
network accepts, so the preprocessed data serve both. Only 3D configurations are taken over, without cascades.
"""

import argparse
import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from rep3d import build_network

from . import TRAINERS
from .adapter import CLASS, NetworkFromPlans, by, nearest_patch
from .errors import OneLineParser, PlansError, run
from .files import creating, read_json, write_json

# Arguments of the two functions that build a network, besides those that they pass on to its constructor.
TAKEN = {name for build in (NetworkFromPlans, build_network) for name in inspect.signature(build).parameters}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("rep3d.nnunet.write_plans", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the dataset in nnUNet_preprocessed")
    old = "plans to start from (default: %(default)s)"
    parser.add_argument("--plans", type=_plans_name, default="nnUNetPlans", metavar="NAME", help=old)
    parser.add_argument("--name", type=_plans_name, default="nnUNetRep3DPlans", help="new plans (default: %(default)s)")
    parser.add_argument("--network", default="REP3D", metavar="NAME", help="key of rep3d.NETWORKS (default: REP3D)")
    parser.add_argument(
        "--patch_size",
        nargs=3,
        type=_positive,
        metavar=("Z", "Y", "X"),
        help="patch, voxels, in nnU-Net's order of axes (default: nnU-Net's, rounded)",
    )
    parser.add_argument(
        "--batch_size",
        type=_positive,
        metavar="N",
        help="patches per iteration (default: nnU-Net's, which is chosen for the memory of its own network)",
    )
    parser.add_argument(
        "--network_args",
        nargs="+",
        type=_network_argument,
        default=[],
        metavar="NAME=VALUE",
        help="arguments of the network's constructor, values in JSON: feat_size=[16,32,64,128] kernel_size=11",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace plans of this name")
    return parser.parse_args(argv)


def _plans_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text) or "__" in text:  # nnU-Net joins it to other names by "__"
        raise argparse.ArgumentTypeError(f"found {text!r}, expected letters, digits, - and single _")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a positive whole number")
    return int(text)


def _network_argument(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main(args: argparse.Namespace) -> None:
    source, target = (args.folder / f"{name}.json" for name in (args.plans, args.name))
    if source == target:
        raise PlansError(f"--name: found {args.name}, expected another name than that of --plans")
    if target.exists() and not args.overwrite:
        raise PlansError(f"--name: found {target}, expected no such file, or --overwrite")
    plans = read_json(source)
    try:
        old = {name: resolve(plans["configurations"], name) for name in plans["configurations"]}
        left_out = {name: reason for name in old if (reason := reason_to_leave_out(old[name]))}
        new = {name: rewrite(old[name], args) for name in old if name not in left_out}
    except (AttributeError, KeyError, TypeError) as error:
        raise PlansError(
            f"{source}: found no plans of nnU-Net v2, expected those of nnUNetv2_plan_experiment"
        ) from error
    if not new:
        raise PlansError(f"{source}: found no 3D configuration besides cascades, expected one")
    with creating(target, "--folder"):
        write_json(target, {**plans, "plans_name": args.name, "configurations": new})
    for name, configuration in new.items():
        patch, before = by(configuration["patch_size"]), by(old[name]["patch_size"])
        changed = "" if patch == before else f" instead of {before}"
        print(
            f"{name}: {args.network}, patches of {patch} voxels (Z, Y, X){changed}, {configuration['batch_size']} in a "
            f"batch, data of {configuration['data_identifier']}"
        )
    print(*(f"{name}: left out, {reason}" for name, reason in left_out.items()), f"wrote {target}", sep="\n")
    print(f"nnUNet_extTrainer={TRAINERS} is the folder of nnUNetTrainerRep3D")


def resolve(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with everything that it inherits from others.

    Raises:
        KeyError: it inherits from an unknown one, or from itself.
    """
    configuration = dict(configurations[name])
    parent = configuration.pop("inherits_from", None)
    if parent is None:
        return configuration
    others = {other: content for other, content in configurations.items() if other != name}
    return {**resolve(others, parent), **configuration}


def reason_to_leave_out(configuration: dict[str, Any]) -> str | None:
    """Return why the networks cannot serve a configuration; None if they can."""
    if len(configuration["patch_size"]) == 2:
        return "the networks are 3D"
    return "cascades were not tested" if configuration.get("previous_stage") else None


def rewrite(configuration: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return a configuration with another network, patch and batch size.

    Raises:
        PlansError: the network cannot be built, or does not accept ``--patch_size``.
    """
    overrides = dict(args.network_args)
    if taken := sorted(TAKEN & set(overrides)):
        raise PlansError(
            f"--network_args: found {', '.join(taken)}, expected arguments of the network's constructor that neither "
            "other flags nor nnU-Net set; rep3d.nnunet.deploy makes the folded form"
        )
    patch = args.patch_size or nearest_patch(configuration["patch_size"], args.network, overrides)
    arguments = {"network": args.network, "patch_size": list(patch), **overrides}
    with torch.device("meta"):
        NetworkFromPlans(input_channels=1, num_classes=2, **arguments)
    architecture = {"network_class_name": CLASS, "arch_kwargs": arguments, "_kw_requires_import": []}
    kept = {key: value for key, value in configuration.items() if key != "next_stage"}
    batch_size = args.batch_size or configuration["batch_size"]
    return {**kept, "patch_size": list(patch), "batch_size": batch_size, "architecture": architecture}


if __name__ == "__main__":
    run(main, parse_args())

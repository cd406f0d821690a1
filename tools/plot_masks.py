"""Plot the masks and large kernels of trained networks, and how far training has moved each tap.

    python -m tools.plot_masks --weights runs/a/best_metric_model.pth --output pictures

For each block with a kernel W and, if the network has masks, a mask M: the prior P at the start, M, |W|, |W_eff| with
W_eff = W * M, and the movement |W_eff - W_eff at the start|; all but P are means over the channels or maps. Without a
mask W_eff is W. Several checkpoints with the same blocks are drawn side by side; of their slices, only M and |W_eff|.

The start is rebuilt from the seed of the run, which is in last_checkpoint.pth and args.json. Run this with the code and
PyTorch that the run had: others may start differently, and the movement would be wrong. Without a seed, or after
--pretrain, it is left out.

Writes masks.png, the central slices; profiles.png and profiles.csv, the means over shells of equal distance from the
kernel's centre.
"""

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engine.evaluation.masks import find_blocks, radial_profile
from engine.evaluation.pictures import save_png
from engine.runtime.arguments import number
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import make_output_folder, write_csv
from engine.weights.checkpoints import NetworkConfig
from engine.weights.load_network import TrainedNetwork, build_start, load_trained, name_checkpoints
from networks.Rep3D.rep3d_encoder import MaskedKernelBlock

# Quantities by their column in profiles.csv, and their titles.
QUANTITIES = {"prior": "prior P", "mask": "mask M", "kernel": "|W|", "effective": "|W_eff|", "moved": "|W_eff - start|"}
MASKS = ("prior", "mask")  # share one scale
SIDE_BY_SIDE = ("mask", "effective")
Taps = dict[str, NDArray[np.floating[Any]]]  # quantity -> (K, K, K), or its profile (shells,)
Blocks = dict[str, Taps]  # block -> its taps


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("plot_masks", description=__doc__.splitlines()[0])
    weights = "training checkpoints of main_train.py"
    parser.add_argument("--weights", nargs="+", metavar="FILE", required=True, help=weights)
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the pictures and the table")
    seed = "seed of the runs (default: that in the checkpoint or in args.json beside it)"
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), metavar="N", help=seed)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Draw slices and profiles, and write the table."""
    output, names = Path(args.output), name_checkpoints(args.weights, "--weights")
    make_output_folder(output)
    taps = {path: measure_network(Path(path), args.seed) for path in args.weights}
    first, *others = args.weights
    for path in others:
        if taps[path].keys() != taps[first].keys():
            raise InputError(f"--weights: {path} has other blocks than {first}, expected networks of one kind")
    save_png(draw_slices(taps, names), output / "masks.png")
    profiles = {path: {name: average_shells(cubes) for name, cubes in own.items()} for path, own in taps.items()}
    save_png(draw_profiles(profiles, names), output / "profiles.png")
    write_profiles(profiles, output / "profiles.csv")


def measure_network(path: Path, seed: int | None) -> Blocks:
    """Compute the quantities of every block of a trained network."""
    trained = load_trained(path, "--weights")
    blocks = find_blocks(trained.network)
    check_blocks(trained, blocks, path)
    start = rebuild_start(trained.config, read_flags(trained.content, path), seed, path)
    return {name: measure_taps(block, start.get(name)) for name, block in blocks.items()}


def check_blocks(trained: TrainedNetwork, blocks: dict[str, MaskedKernelBlock], path: Path) -> None:
    """Raise InputError if a network has no large kernels, or if its checkpoint has them multiplied by their masks."""
    if not blocks:
        name = trained.config.network
        raise InputError(f"--weights: found {name} in {path}, expected a network with large-kernel blocks")
    masked = any(block.lrbm is not None for block in blocks.values())
    if masked and not any(".lrbm." in name for name in trained.content["model"]):
        raise InputError(f"--weights: {path} is deployed, its masks are folded, expected a training checkpoint")


def read_flags(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return seed and pretrain of a run, from its checkpoint or from args.json beside it; nothing without either."""
    beside = path.with_name("args.json")
    if "args" not in content and not beside.exists():
        return {}
    try:
        flags = content["args"] if "args" in content else json.loads(beside.read_text(encoding="utf-8"))
        return {"seed": int(flags["seed"]), "pretrain": bool(flags["pretrain"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        place = path if "args" in content else beside
        raise InputError(f"--weights: {place} lacks seed and pretrain, expected the flags of main_train.py") from error


def rebuild_start(
    config: NetworkConfig, flags: dict[str, Any], seed: int | None, path: Path
) -> dict[str, MaskedKernelBlock]:
    """Rebuild the blocks as they were before training; if that is impossible, print why and return none."""
    seed = flags.get("seed") if seed is None else seed
    if flags.get("pretrain"):
        print(f"{path}: movement left out, the run started from other weights (--pretrain)")
        return {}
    if seed is None:
        print(f"{path}: movement left out, found no seed in the checkpoint and no args.json beside it, expected --seed")
        return {}
    return find_blocks(build_start(config, seed))


@torch.no_grad()
def measure_taps(block: MaskedKernelBlock, start: MaskedKernelBlock | None) -> Taps:
    """Compute the quantities of a block; those that it lacks are left out."""
    kernel, effective = block.dwconv.weight, block.get_equivalent_kernel()
    taps = {"kernel": kernel.abs(), "effective": effective.abs()}
    if block.lrbm is not None:
        taps = {"prior": block.lrbm.prior[None, None], "mask": block.lrbm(), **taps}
    if start is not None:
        taps["moved"] = (effective - start.get_equivalent_kernel()).abs()
    return {key: cubes.mean(dim=(0, 1)).numpy() for key, cubes in taps.items()}  # (maps, 1, K, K, K) -> (K, K, K)


def average_shells(taps: Taps) -> Taps:
    """Average each quantity over the shells of equal distance from the centre, (K, K, K) -> (shells,)."""
    return {key: radial_profile(cube) for key, cube in taps.items()}


def draw_slices(taps: dict[str, Blocks], names: dict[str, str]) -> Figure:
    """Draw the central slices, one row per block: all quantities of one checkpoint, or M and |W_eff| of several."""
    several, blocks = len(taps) > 1, list(next(iter(taps.values())))
    columns = [
        (path, key) for path, own in taps.items() for key in own[blocks[0]] if not several or key in SIDE_BY_SIDE
    ]
    figure = Figure(figsize=(2.9 * len(columns) + 0.4, 2.4 * len(blocks)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(blocks), len(columns), squeeze=False)
    for views, name in zip(rows, blocks, strict=True):
        for view, (path, key) in zip(views, columns, strict=True):
            cubes = taps[path][name]
            shared = [cubes[other] for other in MASKS if (path, other) in columns] if key in MASKS else [cubes[key]]
            low, high = float(np.min(shared)), float(np.max(shared))
            shown = view.imshow(cubes[key][len(cubes[key]) // 2], "viridis", vmin=low, vmax=high)
            figure.colorbar(shown, ax=view, ticks=[low, high], format="%.2g")
            view.set(xticks=[], yticks=[])
        views[0].set_ylabel(name, fontsize=9)
    for view, (path, key) in zip(rows[0], columns, strict=True):
        lines = [*textwrap.wrap(names[path], 28), QUANTITIES[key]] if several else [QUANTITIES[key]]
        view.set_title("\n".join(lines), fontsize=10)
    return figure


def draw_profiles(profiles: dict[str, Blocks], names: dict[str, str]) -> Figure:
    """Draw the radial profiles, one row per quantity, one column per block, one line per checkpoint."""
    blocks = list(next(iter(profiles.values())))
    known = {key for own in profiles.values() for key in own[blocks[0]]}
    rows = [key for key in QUANTITIES if key in known and key != "prior"]
    figure = Figure(figsize=(2.6 * len(blocks) + 0.5, 2.5 * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(blocks), squeeze=False, sharex="col", sharey="row")
    lines = {}
    for views, key in zip(grid, rows, strict=True):
        for view, name in zip(views, blocks, strict=True):
            for colour, (path, own) in enumerate(profiles.items()):
                if key == "mask" and "prior" in own[name]:
                    (lines["prior P"],) = view.plot(own[name]["prior"], "k--", zorder=3)
                if key in own[name] and own[name][key].any():  # no movement has no logarithm
                    (lines[names[path]],) = view.plot(own[name][key], color=f"C{colour}")
            view.set_yscale("linear" if key == "mask" else "log")
        views[0].set_ylabel(QUANTITIES[key])
    for top, bottom, name in zip(grid[0], grid[-1], blocks, strict=True):
        top.set_title(name, fontsize=9)
        bottom.set_xlabel("distance, voxels")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def write_profiles(profiles: dict[str, Blocks], path: Path) -> None:
    """Write the radial profiles, one row per checkpoint, block and distance; cells of missing quantities are empty."""
    rows = []
    for checkpoint, blocks in profiles.items():
        for name, profile in blocks.items():
            for distance in range(len(profile["kernel"])):
                values = {key: f"{column[distance]:.6g}" for key, column in profile.items()}
                rows.append([checkpoint, name, distance, *(values.get(key) for key in QUANTITIES)])
    write_csv(path, ["checkpoint", "block", "distance", *QUANTITIES], rows)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))

"""Sections of a report about the training: what was trained, curves, times, masks, arguments and versions."""

import json
import math
from datetime import datetime
from typing import Any

import numpy as np

from engine.data.datasets import DatasetDescription
from engine.data.splits import SHOWN
from engine.evaluation.masks import compute_masks, mask_scalars
from engine.evaluation.pictures import mask_slices
from engine.report.charts import (
    COMPUTE,
    WAIT,
    chart_dice_curves,
    chart_loss,
    chart_rate,
    chart_steps,
    chart_wait,
)
from engine.report.curves import Curve, pair
from engine.report.figures import CHARTS, drawing, encode_svg
from engine.report.page import Block, Facts, Picture, Pictures, Section, Table, Text
from engine.report.run_folder import LOGS, Run
from engine.runtime.arguments import PARTS, format_value
from engine.runtime.files import BEST, LAST
from engine.runtime.versions import software_versions
from engine.weights.checkpoints import split_of

VALIDATION = "time/validation_share"  # in the log
NO_CURVES = f"There are no curves: the run has no {LOGS} folder with at least one step."


def show_training(run: Run) -> Section:
    """Show what was trained, on what, and how far."""
    facts: dict[str, Any] = {}
    if run.best is not None:
        config = run.best.config
        facts["network"] = config.network
        facts["its arguments"] = format_value(config.overrides) if config.overrides else "defaults"
        facts["parameters"] = f"{sum(value.numel() for value in run.best.network.parameters()) / 1e6:.2f} million"
        facts |= describe_dataset(run.best.description)
    facts |= describe_split(run)
    facts |= describe_recipe(run)
    if (progress := run.progress) is not None:
        facts["iterations done"] = progress.iteration
        reached = f"{progress.best_dice:.4f} at iteration {progress.best_iteration}"
        facts["best mean Dice"] = reached if math.isfinite(progress.best_dice) else "none so far"
        facts["skipped steps"] = progress.skipped
    if run.logs.times is not None:
        start, end = (datetime.fromtimestamp(time) for time in run.logs.times)
        facts["first step logged"], facts["last step logged"] = f"{start:%Y-%m-%d %H:%M}", f"{end:%Y-%m-%d %H:%M}"
    blocks: list[Block] = [Facts([(name, str(value)) for name, value in facts.items() if value is not None])]
    for name, found in ((BEST, run.best is not None), (LAST, bool(run.last))):
        if not found:
            blocks.append(Text(f"The run has no {name}; what it would tell is left out."))
    return Section("What was trained", blocks)


def describe_dataset(description: DatasetDescription) -> dict[str, str]:
    """Describe a dataset by names and values."""
    windows = {
        name: "z-score" if window is None else f"{window[0]:g} to {window[1]:g}"
        for name, window in zip(description.channels, description.windows, strict=True)
    }
    several = len(windows) > 1
    return {
        "dataset": f"{description.name} ({description.modality})" if description.modality else description.name,
        "classes": ", ".join(description.classes),
        **({"regions": ", ".join(dict(description.regions))} if description.regions else {}),
        "spacing, mm": " x ".join(f"{side:g}" for side in description.spacing),
        "intensity": ", ".join(f"{name}: {rule}" if several else rule for name, rule in windows.items()),
    }


def describe_split(run: Run) -> dict[str, str]:
    """Describe the split that the checkpoints hold: its name and hash, and the number of cases in each part."""
    split = split_of(run.last) or split_of(run.best.content if run.best is not None else {})
    counts = {f"{part} cases": str(len(split[part])) for part in PARTS if part in split}
    if "name" not in split:  # as earlier versions wrote it
        return counts
    fold = f", fold {split['fold']} of {split['folds']}" if split["folds"] > 1 else ""
    return {**counts, "split": f"{split['name']}{fold}, hash {split['hash'][:SHOWN]}"}


def describe_recipe(run: Run) -> dict[str, str | None]:
    """Name the parts of the recipe that a reader looks for first; all flags have a section of their own."""
    args = run.args
    if not {"roi_size", "optim", "lr", "max_iter", "seed", "batch_size", "crop_sample"} <= args.keys():
        return {}
    processes, precision = run.last.get("processes", 1), run.last.get("precision")
    accumulate = args.get("accumulate", 1)
    parts = f", {accumulate} batches per iteration" if accumulate > 1 else ""
    devices = f" on each of {processes} devices" if processes > 1 else ""
    return {
        "crop, voxels": " x ".join(map(str, args["roi_size"])),
        "batch": f"{args['batch_size']} x {args['crop_sample']} crops{parts}{devices}",
        "optimiser": f"{args['optim']}, learning rate {args['lr']}, {args.get('lr_schedule', '')}".rstrip(", "),
        "iterations planned": str(args["max_iter"]),
        "precision": precision and precision.removeprefix("torch.").replace("None", "float32"),
        "seed": str(args["seed"]),
    }


def show_curves(run: Run) -> Section:
    """Draw loss, learning rate and Dice over the iterations."""
    scalars, pictures = run.logs.scalars, []
    with drawing(CHARTS):
        if "train/loss" in scalars:
            chart = encode_svg(chart_loss(scalars["train/loss"]))
            pictures.append(Picture(chart, "Curve of the training loss", "Training loss, running mean."))
        if any(name.startswith("dice/") for name in scalars):
            chart = encode_svg(chart_dice_curves(scalars))
            caption = "Dice of the validation cases on the resampled grid, by class."
            pictures.append(Picture(chart, "Curves of the validation Dice by class", caption))
        if "train/lr" in scalars:
            chart = encode_svg(chart_rate(scalars["train/lr"]))
            pictures.append(Picture(chart, "Curve of the learning rate", "Learning rate."))
    blocks: list[Block] = [Pictures(pictures)] if pictures else [Text(NO_CURVES)]
    if pictures and not any(name.startswith("dice/") for name in scalars):
        blocks.append(Text("There is no curve of the Dice: no validation is finished."))
    return Section("Curves", blocks)


def step_times(run: Run) -> tuple[Curve, Curve]:
    """Return the seconds that each step waited for data, and computed; empty curves without a step."""
    none = Curve(np.array([], np.int64), np.array([]))
    return pair(*(run.logs.scalars.get(name, none) for name in (WAIT, COMPUTE)))


def wait_share(run: Run) -> float:
    """Compute the share of the time of all steps that they waited for data; NaN without steps."""
    wait, compute = step_times(run)
    waited, computed = wait.values.sum(), compute.values.sum()
    return float(waited / max(waited + computed, 1e-12)) if len(wait.steps) else math.nan


def show_time(run: Run) -> Section:
    """Show the time of a step, and how much of it passed in waiting for data."""
    share, scalars = wait_share(run), run.logs.scalars
    if math.isnan(share):
        return Section("Time", [Text(NO_CURVES)])
    wait, compute = step_times(run)
    total = wait.values + compute.values
    facts = {
        "waiting for data": f"{100 * share:.1f} % of the time of all steps",
        "median step": f"{np.median(total):.3g} s",
        "95 % of the steps": f"up to {np.percentile(total, 95):.3g} s",
        "all steps": f"{total.sum() / 3600:.3g} h",
    }
    if VALIDATION in scalars:
        facts["validating"] = f"{100 * scalars[VALIDATION].values[-1]:.1f} % of the time of the run"
    with drawing(CHARTS):
        curve, histogram = encode_svg(chart_wait(wait, compute)), encode_svg(chart_steps(wait, compute))
    pictures = [
        Picture(curve, "Curve of the share of the time spent waiting", "Share of the time spent waiting for data."),
        Picture(histogram, "Histogram of the seconds of a step", "Seconds of waiting and of computing in each step."),
    ]
    return Section("Time", [Facts(list(facts.items())), Pictures(pictures)])


def show_masks(run: Run) -> Section:
    """Draw the mask of each block, and list how far it has moved from the prior."""
    if run.best is None:
        return Section("Masks", [Text(f"The run has no {BEST}, which holds the masks.")])
    masks = compute_masks(run.best.network)
    if not masks:
        return Section("Masks", [Text(f"{run.best.config.network} has no masks.")])
    with drawing(CHARTS | {"axes.grid": False}):
        picture = encode_svg(mask_slices(masks))
    caption = "Mask M of each block, central slice."
    blocks: list[Block] = [Pictures([Picture(picture, "Central slices of the masks", caption)], wide=True)]
    scalars = mask_scalars(run.best.network)
    if not scalars:
        return Section("Masks", [*blocks, Text("The masks are the fixed prior P, which is not learned.")])
    rows = [
        [name, f"{scalars[f'{name}/correction']:.4f}", f"{scalars[f'{name}/smallest']:.4f}"]
        for name in masks
        if f"{name}/correction" in scalars
    ]
    table = Table(["block", "mean |M - P| / P", "smallest M"], rows, "Distance of the masks from the prior P.")
    return Section("Masks", [*blocks, table])


def show_arguments(run: Run) -> Section:
    """List all flags of the run."""
    if not run.args:
        return Section("Arguments", [Text("The run has no args.json, so its flags are not known.")])
    return Section("Arguments", [Facts([(f"--{name}", format_value(value)) for name, value in run.args.items()])])


def show_versions(run: Run) -> Section:
    """List the versions that the run was started with last, and those that wrote the report."""
    blocks: list[Block] = []
    if run.versions:
        pairs = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in run.versions.items()]
        blocks += [Text("The run was started with"), Facts(pairs)]
    else:
        blocks.append(Text("The run has no versions.json: what it was started with is not known."))
    return Section(
        "Versions", [*blocks, Text("This report was written with"), Facts(list(software_versions().items()))]
    )

"""Comparison of two finished training runs: weights, optimiser, scores, and every step of their logs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from engine.runtime.files import BEST, LAST


def differences(one: Path, other: Path) -> list[str]:
    """List the differences between the output folders of two finished runs, except for measured seconds.

    Args:
        one, other: output folders of main_train.py.
    """
    return [*_checkpoint_differences(one, other), *_log_differences(one, other)]


def _checkpoint_differences(one: Path, other: Path) -> Iterator[str]:
    for name in (LAST, BEST):
        contents = [torch.load(folder / name, weights_only=True) for folder in (one, other)]
        for key in ("model", "trained_model", "averaged", "optimizer", "scaler", "iteration", "best_dice"):
            if not _equal(*(content.get(key) for content in contents)):
                yield f"{name}: {key}"
        progress = [_without_seconds(content.get("progress", {})) for content in contents]
        if not _equal(*progress):
            yield f"{name}: progress {progress[0]} and {progress[1]}"


def _without_seconds(progress: dict[str, Any]) -> dict[str, Any]:
    scalars = {name: value for name, value in progress.get("scalars", {}).items() if not _is_time(name)}
    return {name: value for name, value in {**progress, "scalars": scalars}.items() if not _is_time(name)}


def _is_time(name: str) -> bool:
    """Check whether a number is a measured time, or a share of times."""
    return name.endswith("_s") or name.startswith("time/")


def _equal(one: Any, other: Any) -> bool:
    """Compare nested plain values and tensors, bit for bit; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return repr(one) == repr(other)


def _log_differences(one: Path, other: Path) -> Iterator[str]:
    everything = {"scalars": 0, "images": 0}  # 0: no limit; with a limit, TensorBoard samples
    logs = [EventAccumulator(str(folder / "tensorboard"), everything).Reload() for folder in (one, other)]
    for kind, read in (("scalars", "Scalars"), ("images", "Images")):
        names = [set(log.Tags()[kind]) for log in logs]
        if names[0] != names[1]:
            yield f"tensorboard: {kind} {sorted(names[0] ^ names[1])} in one only"
        for name in sorted(names[0] & names[1]):
            events = [getattr(log, read)(name) for log in logs]
            steps = [[event.step for event in logged] for logged in events]
            if steps[0] != steps[1]:
                yield f"tensorboard: {name} at steps {steps[0]} and {steps[1]}"
            elif kind == "scalars" and not _is_time(name):
                values = [[event.value for event in logged] for logged in events]
                if not _equal(*values):
                    yield f"tensorboard: {name} {values[0]} and {values[1]}"

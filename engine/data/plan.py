"""A plan for a dataset: how its volumes are resampled, scaled and cropped, chosen from the reports on its cases."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from engine.data.case_checks import CaseReport
from engine.data.datasets import DatasetDescription, Window
from engine.data.drafts import GIVEN, OWN_CHANNEL, OWN_CHANNELS, Draft
from engine.data.foreground import Foreground
from engine.data.header_checks import format_size
from engine.runtime.errors import InputError
from engine.runtime.warning_lines import Warnings, merge_warnings
from engine.runtime.wording import count_of, list_some

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5  # of the labelled voxels of a CT: the ends of its window
AIR_HU = -500  # a CT has voxels below it, other images do not
SIDE = 16  # REP3D's sides are multiples of it, at least one of them of twice it
CROPS = 2  # of a training step, by default
# Of a training step of REP3D in float32: its row in docs/networks.md less 0.5 GB for Python and its libraries, and the
# tensors that another class adds to the loss. In bf16 the tensors kept for the backward pass take about half.
WEIGHT_BYTES = 16 * 66e6  # weights, gradients and AdamW's two moments
VOXEL_BYTES, CLASS_BYTES = 5200, 24  # per voxel of a crop
LEAST_VOXELS = 64  # of a class in a case: a cube of four


class Choice(NamedTuple):
    """One line of a plan.

    Args:
        subject: field of the description, flag of main_train.py, or class.
        value: what was chosen or found, as text.
        reason: why, or more about it.
    """

    subject: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.value} ({self.reason})"


@dataclass(frozen=True)
class Plan:
    """Plan for a dataset.

    Args:
        description: the whole description.
        roi_size: crop along R-L, A-P and I-S, voxels.
        choices: the plan line by line.
        cases: the reports, with the foreground crop of the planned windows.
        warnings: lines by kind.
    """

    description: DatasetDescription
    roi_size: tuple[int, int, int]
    choices: list[Choice]
    cases: list[CaseReport]
    warnings: Warnings

    def to_json(self) -> dict[str, Any]:
        """Convert description, crop and lines to plain values."""
        lines = [choice._asdict() for choice in self.choices]
        return {"description": self.description.to_json(), "roi_size": list(self.roi_size), "choices": lines}


def make_plan(draft: Draft, cases: Sequence[CaseReport], roi_size: Sequence[int] | None, memory: float) -> Plan:
    """Make a plan.

    Args:
        draft: draft of the description.
        cases: reports without problems, with their foreground, of all splits; the training cases decide.
        roi_size: crop along R-L, A-P and I-S, voxels, if it is given.
        memory: memory for a training step of REP3D, GB.
    Raises:
        InputError: there is no training case, no window can be chosen, or no crop fits in the memory.
    """
    description, reasons = draft.description, dict(draft.reasons)
    samples = [case.foreground for case in cases if case.split == "training" and case.foreground]
    if not samples:
        raise InputError("found no training case, expected some in imagesTr and labelsTr")
    if "intensity" not in reasons:
        windows, reasons["intensity"] = choose_windows(description, samples)
        description = replace(description, windows=windows)
    cropped = [_crop_again(case, description) for case in cases]
    training = [case for case in cropped if case.split == "training"]
    shape = np.median([case.final_shape for case in training if case.final_shape], axis=0)
    if roi_size is None:
        sides = choose_crop(shape, description.spacing, most_voxels(memory, len(description.classes)))
        reason = (
            f"the crop with the longest shortest side in mm that has sides divisible by {SIDE}, is within the median "
            f"volume, {format_size(shape)} at this spacing, and fits in --memory {memory:g}"
        )
    else:
        (depth, height, width), reason = roi_size, GIVEN
        sides = depth, height, width
    estimate = step_bytes(math.prod(sides), len(description.classes)) / 1e9
    reason += f"; a step of REP3D on {CROPS} crops takes at most about {estimate:.2g} GB, by calculation"
    choices = [
        *_describe_fields(description, reasons),
        Choice("roi_size", f"{format_size(sides)} voxels", reason),
        *(_describe_class(name, training, description.spacing) for name in description.classes[1:]),
        Choice("one pass", count_of(len(training), "iteration"), "one training case each, at --batch_size 1"),
    ]
    warnings = merge_warnings([draft.warnings, _find_tiny(description, training)])
    return Plan(description, sides, choices, cropped, warnings)


def _crop_again(case: CaseReport, description: DatasetDescription) -> CaseReport:
    """Estimate the foreground crop of a case for the windows of the description."""
    if case.foreground is None:
        return case
    box = case.foreground.extent.box(description.windows)
    return replace(case, cropped_shape=case.estimate_crop(box, description.spacing))


def choose_windows(
    description: DatasetDescription, samples: Sequence[Foreground]
) -> tuple[tuple[Window | None, ...], str]:
    """Choose the rule of each channel: for CT the percentiles of the labelled voxels, otherwise the z-score.

    Source of the percentiles: Isensee et al., nnU-Net, Nature Methods 18 (2021).

    Args:
        description: description with the modality, if it is known, and the names of the channels.
        samples: labelled voxels of the training cases.
    Returns: windows by channel, None for the z-score; and the reason.
    Raises:
        InputError: a CT has no labelled voxel, or the same intensity in nearly all of them.
    """
    windows: list[Window | None] = []
    reasons = []
    for number, name in enumerate(description.channels):
        is_ct, reason = _judge(number, description, samples)
        windows.append(choose_window(name, number, samples) if is_ct else None)
        if is_ct:
            drawn, labelled = (sum(counts) for counts in zip(*map(_count, samples), strict=True))
            ends = f"{LOW_PERCENTILE:g} and {HIGH_PERCENTILE:g} percentiles"
            reason += f": {ends} of the labelled voxels, {drawn:,} of {labelled:,} in {len(samples)} training cases"
        reasons.append(f"{name}: {reason}" if len(description.channels) > 1 else reason)
    return tuple(windows), "; ".join(reasons)


def _judge(number: int, description: DatasetDescription, samples: Sequence[Foreground]) -> tuple[bool, str]:
    """Decide whether a channel is a CT, by its name, the modality, or else its lowest intensities."""
    name, modality = description.channels[number], description.modality
    named = [channel for channel in description.channels if channel.lower() == "ct"]
    if named:
        return name in named, f"{'' if name in named else 'not '}CT by its name"
    if modality:
        return modality.lower() == "ct", f"{'CT' if modality.lower() == 'ct' else f'not CT but {modality}'} by modality"
    if name != OWN_CHANNEL and not re.fullmatch(rf"{OWN_CHANNELS}\d+", name):
        return False, "not CT by its name"
    lowest = max(sample.extent.minima[number] for sample in samples)
    if lowest <= AIR_HU:
        return True, f"CT by its values, below {AIR_HU} in every training case"
    return False, f"not CT by its values, at least {lowest:g} in some training case, where a CT has air"


def _count(sample: Foreground) -> tuple[int, int]:
    return sample.intensities.shape[1], sample.labelled


def choose_window(name: str, number: int, samples: Sequence[Foreground]) -> Window:
    """Choose the window of a channel, its ends rounded outwards: to whole HU, or to a hundredth of a small range.

    Args:
        name: name of the channel, for messages.
        number: number of the channel.
        samples: labelled voxels of the training cases; each case counts by all it has, not by those drawn.
    Raises:
        InputError: no voxel is labelled, or both ends are the same.
    """
    values = np.concatenate([sample.intensities[number] for sample in samples]).astype(np.float64)
    if not values.size:
        raise InputError(f"{name}: found no labelled voxel in any training case, expected some to choose a window by")
    weights = np.concatenate([np.full(drawn, labelled / max(drawn, 1)) for drawn, labelled in map(_count, samples)])
    shares = (LOW_PERCENTILE / 100, HIGH_PERCENTILE / 100)
    low, high = np.quantile(values, shares, weights=weights, method="inverted_cdf")
    if low == high:
        expected = 'expected contrast to choose a window by, or "intensity" in --dataset'
        raise InputError(f"{name}: found the intensity {low:g} in nearly all labelled voxels, {expected}")
    scale = 10.0 ** max(0, 2 - math.floor(math.log10(high - low)))
    return math.floor(low * scale) / scale, math.ceil(high * scale) / scale


def step_bytes(voxels: float, classes: int) -> float:
    """Estimate the memory of a training step of REP3D in float32, bytes.

    Args:
        voxels: voxels of a crop.
        classes: number of classes, background included.
    """
    return WEIGHT_BYTES + CROPS * voxels * (VOXEL_BYTES + CLASS_BYTES * classes)


def most_voxels(memory: float, classes: int) -> float:
    """Estimate how many voxels a crop may have.

    Args:
        memory: memory for a training step of REP3D, GB.
        classes: number of classes, background included.
    Raises:
        InputError: the smallest crop needs more memory.
    """
    if memory * 1e9 < (least := step_bytes(2 * SIDE**3, classes)):
        raise InputError(
            f"--memory: found {memory:g} GB, expected at least {least / 1e9:.2g} for REP3D's smallest crop"
        )
    return (memory * 1e9 - WEIGHT_BYTES) / (step_bytes(1, classes) - WEIGHT_BYTES)


def choose_crop(shape: Sequence[float], spacing: Sequence[float], most: float) -> tuple[int, int, int]:
    """Choose the crop whose shortest side in mm is the longest; among several, by the next longer side, and so on.

    Its sides are multiples of ``SIDE`` and, as far as REP3D accepts it, not longer than the volume.

    Args:
        shape: voxels of a typical volume along R-L, A-P and I-S.
        spacing: voxel size, mm.
        most: limit of the crop's voxels.
    """
    longest = [max(SIDE, int(side) // SIDE * SIDE) for side in shape]
    if max(longest) == SIDE:
        longest[int(np.argmax(shape))] = 2 * SIDE
    crops = [
        (first, second, third)
        for first in range(SIDE, longest[0] + 1, SIDE)
        for second in range(SIDE, longest[1] + 1, SIDE)
        if (third := min(longest[2], int(most / (first * second)) // SIDE * SIDE)) >= SIDE
        if max(first, second, third) > SIDE
    ]
    return max(crops, key=lambda sides: sorted(np.multiply(sides, spacing)))


def _describe_fields(description: DatasetDescription, reasons: dict[str, str]) -> Iterator[Choice]:
    """Yield a line for each field of the description."""
    rules = [
        "z-score" if window is None else f"window from {window[0]:g} to {window[1]:g}" for window in description.windows
    ]
    if len(set(rules)) > 1:
        rules = [f"{name}: {rule}" for name, rule in zip(description.channels, rules, strict=True)]
    values = {
        "name": description.name,
        "modality": description.modality,
        "labels": list_some(description.classes),
        "channels": list_some(description.channels),
        "spacing": f"{format_size(description.spacing)} mm",
        "intensity": ", ".join(dict.fromkeys(rules)),
    }
    for field, value in values.items():
        if field in reasons:
            yield Choice(field, value, reasons[field])


def _describe_class(name: str, cases: Sequence[CaseReport], spacing: Sequence[float]) -> Choice:
    """Describe how often a class occurs, and how large it is once resampled."""
    counts = [case.voxels_by_class[name] for case in cases if case.voxels_by_class]
    number = f"{np.count_nonzero(counts)} of {len(counts)} training cases"
    size = f"{sum(counts):,} voxels; median of these cases {_median_voxels(name, cases, spacing):,.0f} at this spacing"
    return Choice(name, number, size)


def _median_voxels(name: str, cases: Sequence[CaseReport], spacing: Sequence[float]) -> float:
    """Return the median number of voxels of a class after resampling, over the cases that have it; 0 if none has."""
    voxels = []
    for case in cases:
        if case.spacing and case.voxels_by_class and (count := case.voxels_by_class[name]):
            exact = case.resampled_voxels_by_class
            voxels.append(exact[name] if exact else count * math.prod(case.spacing) / math.prod(spacing))
    return float(np.median(voxels)) if voxels else 0


def _find_tiny(description: DatasetDescription, cases: Sequence[CaseReport]) -> Warnings:
    """Warn of classes that are tiny once resampled."""
    sizes = {name: _median_voxels(name, cases, description.spacing) for name in description.classes[1:]}
    tiny = [f"{name} ({size:.0f})" for name, size in sizes.items() if 0 < size < LEAST_VOXELS]
    if not tiny:
        return {}
    found = f"found classes of few voxels at {format_size(description.spacing)} mm: {list_some(tiny)}"
    return {"tiny": [f"{found}, expected a median of {LEAST_VOXELS} or more, which a finer spacing would give"]}

"""A plan for a dataset: how its volumes are resampled, scaled and cropped, chosen from the reports on its cases."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from engine.data.case_checks import CaseReport
from engine.data.datasets import DatasetDescription, Window
from engine.data.drafts import GIVEN, OWN_CHANNEL, OWN_CHANNELS, Draft
from engine.data.foreground import Foreground
from engine.data.header_checks import format_size
from engine.data.plan_rules import (
    AXES,
    CROPS,
    PERCENTILES,
    choose_crop,
    choose_window,
    longest_sides,
    most_voxels,
    step_bytes,
)
from engine.runtime.errors import InputError
from engine.runtime.warning_lines import Warnings, merge_warnings
from engine.runtime.wording import count_of, list_some

AIR_HU = -500  # a CT has voxels below it, other images do not
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
    shape = np.median([case.final_shape for case in training if case.final_shape], axis=0).tolist()
    classes = len(description.classes)
    if roi_size is None:
        sides = choose_crop(shape, description.spacing, most_voxels(memory, classes))
        limit = "" if sides == longest_sides(shape) else f" within --memory {memory:g}"
        reason = f"for a median volume of {format_size(shape)} voxels at this spacing{limit}"
    else:
        (depth, height, width), reason = roi_size, GIVEN
        sides = depth, height, width
    estimate = f"about {step_bytes(math.prod(sides), classes) / 1e9:.2g} GB"
    choices = [
        *_describe_fields(description, reasons),
        Choice("roi_size", f"{format_size(sides)} voxels", reason),
        _describe_padding(training, sides),
        Choice("memory", estimate, f"calculated for a step of REP3D on {CROPS} crops in float32"),
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
    """Choose the rule of each channel: a window for CT, otherwise the z-score.

    Args:
        description: description with the modality, if it is known, and the names of the channels.
        samples: labelled voxels of the training cases.
    Returns: windows by channel, None for the z-score; and the reason.
    Raises:
        InputError: a CT has no labelled voxel, or the same intensity in nearly all of them.
    """
    windows: list[Window | None] = []
    reasons = []
    labelled = [sample.labelled for sample in samples]
    for number, name in enumerate(description.channels):
        is_ct, reason = _judge(number, description, samples)
        intensities = [sample.intensities[number] for sample in samples]
        try:
            windows.append(choose_window(intensities, labelled) if is_ct else None)
        except InputError as mistake:
            raise InputError(f"channel {name}: {mistake}") from mistake
        if is_ct:
            low, high = PERCENTILES
            drawn = sum(map(len, intensities))
            reason += f"; {low:g} to {high:g} percentile of {drawn:,} of {sum(labelled):,} labelled voxels"
        reasons.append(f"{name}: {reason}" if len(description.channels) > 1 else reason)
    return tuple(windows), "; ".join(reasons)


def _judge(number: int, description: DatasetDescription, samples: Sequence[Foreground]) -> tuple[bool, str]:
    """Decide whether a channel is a CT, by its name, the modality, or else its lowest intensities."""
    name, modality = description.channels[number], description.modality
    if any(map(_is_ct, description.channels)):
        return _is_ct(name), "the channel is a CT" if _is_ct(name) else f"the channel is {name}, not CT"
    if modality:
        return _is_ct(modality), f"the modality is {modality}"
    if name != OWN_CHANNEL and not re.fullmatch(rf"{OWN_CHANNELS}\d+", name):
        return False, f"the channel is {name}, not CT"
    lowest = max(sample.extent.minima[number] for sample in samples)
    if lowest <= AIR_HU:
        return True, f"a CT: every training case has values of {AIR_HU} or less"
    return False, f"no CT: a training case has no value below {lowest:g}"


def _is_ct(name: str) -> bool:
    return re.match(r"cta?\b", name, re.IGNORECASE) is not None


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


def axes_to_pad(case: CaseReport, roi_size: Sequence[int]) -> list[str]:
    """List the axes along which a case is shorter than the crop, as far as its shape is known."""
    return [axis for axis, side, least in zip(AXES, case.final_shape or (), roi_size, strict=False) if side < least]


def _describe_padding(cases: Sequence[CaseReport], sides: Sequence[int]) -> Choice:
    """Describe along which axes how many cases are padded to the crop."""
    counts = Counter(axis for case in cases for axis in axes_to_pad(case, sides))
    value = ", ".join(f"{counts[axis]} along {axis}" for axis in AXES if counts[axis])
    return Choice("padded", value or "none", f"of {count_of(len(cases), 'training case')}, where shorter than the crop")


def _describe_class(name: str, cases: Sequence[CaseReport], spacing: Sequence[float]) -> Choice:
    """Describe how often a class occurs, and how large it is once resampled."""
    counts = [case.voxels_by_class[name] for case in cases if case.voxels_by_class]
    number = f"{np.count_nonzero(counts)} of {len(counts)} training cases"
    size = f"{sum(counts):,} voxels; a median of {_median_voxels(name, cases, spacing):,.0f} at this spacing"
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

"""Estimate of a run's windows and of the time that its networks take, before the first case."""

import time
from collections.abc import Sequence

import torch

from engine.data.cases import Case
from engine.data.datasets import DatasetDescription
from engine.data.header_checks import read_image_headers
from engine.prediction.ensemble import Ensemble, Member
from engine.runtime.wording import count_of, duration

WORTHWHILE = 20  # windows: with fewer, measuring one of them would be a noticeable part of the run


def estimate_work(cases: Sequence[Case], description: DatasetDescription, ensemble: Ensemble) -> str | None:
    """Write a line about the windows of a run and the time that its networks take; None for a short run.

    The windows are those of the whole images, which are cropped to the foreground when they are loaded. The time is
    that of one window of each network, measured on the device.

    Args:
        cases: cases of this process.
        description: description of the dataset.
        ensemble: networks on their device, within ``Ensemble.keep_kernel_spectra``.
    """
    shapes = [shape for case in cases if (shape := find_shape(case, description)) is not None]
    windows = sum(map(ensemble.count_windows, shapes))
    if windows < WORTHWHILE:
        return None
    mirrorings = len(ensemble.passes) // len(ensemble.members)
    seconds = sum(measure_window(member) * sum(map(member.window.count, shapes)) for member in ensemble.members)
    most = f"at most {count_of(windows, 'window')} in {count_of(len(shapes), 'case')}"
    return f"{most}: about {duration(mirrorings * seconds)} of network time"


def find_shape(case: Case, description: DatasetDescription) -> tuple[int, ...] | None:
    """Compute the shape (D, H, W) of a case on the network's grid, before the crop, from the header of its image.

    None if the header has problems, which are reported when the case is predicted.
    """
    header, *_ = read_image_headers(case, description)
    if header.problems or header.grid is None:
        return None
    return header.grid.turn_to_ras().resampled_shape(description.spacing)


def measure_window(member: Member) -> float:
    """Measure the seconds that a network takes for one window."""
    window, network = member.window, member.network
    windows = torch.zeros(window.per_forward, network.in_chans, *window.roi_size, device=window.device)
    on_gpu = window.device.type == "cuda"
    seconds = 0.0
    for _ in range(2 if on_gpu else 1):  # on a GPU the first pass chooses and loads kernels
        started = time.perf_counter()
        with torch.inference_mode(), window.autocast():
            network(windows)
        if on_gpu:
            torch.cuda.synchronize(window.device)
        seconds = time.perf_counter() - started
    return seconds / len(windows)

"""The run of a bundle: a user's mistake ends it with a line, an image that fails does not stop the others."""

import argparse
import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.engines import Evaluator

from engine.data.load_volume import input_error_of
from engine.runtime.arguments import AMP_CHOICES, number
from engine.runtime.errors import CasesFailed, DiskError, describe_error, raise_problems, run
from engine.runtime.files import make_output_folder

from .cases import find_images

TO_LOWER = "sw_batch_size or num_workers"  # if memory runs out
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def with_exit_status(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function end the process after a user's mistake, with its exit status and a line on stderr.

    MONAI would wrap the error in others that do not name the mistake.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        results: list[Result] = []
        if status := run(lambda _: results.append(function(*args, **kwargs)), argparse.Namespace(), TO_LOWER):
            sys.exit(status)
        return results[0]

    return call


list_images = with_exit_status(find_images)


@with_exit_status
def check_settings(
    output_dir: str, device: str | torch.device, amp: str, overlap: float, sw_batch_size: int, num_workers: int
) -> None:
    """Make the output folder and check the values that users may override, before an image is read.

    Raises:
        InputError: one line per wrong value; the folder cannot be written to.
    """
    problems = [] if amp in AMP_CHOICES else [f"amp: found {amp!r}, expected one of {', '.join(AMP_CHOICES)}"]
    numbers = (
        ("overlap", overlap, number(float, 0, 1, open_high=True)),
        ("sw_batch_size", sw_batch_size, number(int, 1)),
        ("num_workers", num_workers, number(int, 0)),
    )
    for name, value, convert in numbers:
        try:
            convert(str(value))
        except argparse.ArgumentTypeError as error:
            problems.append(f"{name}: {error}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device; PyTorch without CUDA
        reason = str(error).splitlines()[0]
        problems.append(f"device: found {str(device)!r} ({reason}), expected cpu, or cuda:0 on a machine with a GPU")
    raise_problems(problems)
    make_output_folder(Path(output_dir), "output_dir")


@with_exit_status
def segment_images(evaluator: Evaluator, dataset: Dataset) -> None:
    """Run an evaluator over a dataset, which may be empty; one line per image that failed is the last that is written.

    MONAI and ignite have logged each failure with a traceback by then.

    Args:
        evaluator: evaluator that segments and saves the images of a loader, one after the other.
        dataset: dataset of that loader; its list of images is used up.
    Raises:
        CasesFailed: images failed.
        DiskError: label maps cannot be written.
    """
    images: Any = dataset.data
    finished: list[str] = []
    failures: list[str] = []

    def count(_: Evaluator) -> None:
        finished.append(images[len(finished)]["id"])

    def note(_: Evaluator, error: BaseException) -> None:
        cause = input_error_of(error)
        if not isinstance(error, Exception) or isinstance(cause, DiskError):  # no fault of the image
            raise cause or error
        failures.append(describe_error(images[len(finished)]["id"], error, TO_LOWER))
        # Its frames hold volumes, and the loader, whose processes would end seconds later.
        traceback.clear_frames(error.__traceback__)

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, count)  # after the evaluator's own, which saves the image
    evaluator.add_event_handler(Events.EXCEPTION_RAISED, note)  # without it ignite would raise the error
    while images:
        evaluator.state.epoch_length = len(images)
        evaluator.run()  # until an image fails, or all are done
        del images[: len(finished) + 1]
        finished.clear()
    if failures:
        raise CasesFailed("\n".join(dict.fromkeys(failures)))

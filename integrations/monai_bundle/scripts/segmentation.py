"""The run of a bundle."""

import argparse
import sys
from collections.abc import Sized

from monai.engines import Evaluator

from engine.data.load_volume import input_error_of
from engine.runtime.errors import run


def segment_images(evaluator: Evaluator, dataset: Sized) -> None:
    """Run an evaluator over a dataset, which may be empty; a user's mistake ends the process with a line on stderr.

    MONAI and ignite have logged it with a traceback by then; the line is the last that is written.
    """

    def evaluate(_: argparse.Namespace) -> None:
        try:
            evaluator.run()
        except RuntimeError as error:
            if (cause := input_error_of(error)) is None:
                raise
            raise cause from None

    if len(dataset) > 0 and (status := run(evaluate, argparse.Namespace(), "sw_batch_size or num_workers")):
        sys.exit(status)

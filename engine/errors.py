"""User mistakes: one line each, exit status 2, never a traceback."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

USER_ERROR = 2


class InputError(ValueError):
    """A mistake in flags, files or folders: one line a problem, naming what was found and what was expected."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message}\n")


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """Run a script's ``main``; its user's mistakes become lines on stderr and exit status 2."""
    try:
        main(args)
    except InputError as mistake:
        print(*(f"error: {line}" for line in str(mistake).splitlines()), sep="\n", file=sys.stderr)
        return USER_ERROR
    return 0

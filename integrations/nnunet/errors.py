"""User mistakes as one line each on stderr and exit status 2, as the scripts of the repository report them."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

USER_ERROR = 2


class PlansError(ValueError):
    """Mistake in plans, files or flags: one line, with what was found and what was expected."""


@contextmanager
def exit_on_mistake() -> Iterator[None]:
    """End the program at a ``PlansError``, with its text on stderr."""
    try:
        yield
    except PlansError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from mistake


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run a command's ``main``; files that cannot be read or written are user mistakes as well."""
    with exit_on_mistake():
        try:
            main(args)
        except OSError as error:
            found = f"{error.filename or 'output'}: found {error.strerror}"
            raise PlansError(f"{found}, expected a file or folder that can be used") from error


class OneLineParser(argparse.ArgumentParser):
    """Argument parser that reports a mistake in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {' '.join(message.splitlines())}\n")

"""Files of command-line flags: @recipes/rep3d_amos.args in a command stands for the words in that file."""

import shlex
from collections.abc import Iterable, Iterator


def expand_argument_files(words: Iterable[str]) -> Iterator[str]:
    """Replace each word @FILE by the words of the file; later flags override them as usual.

    Lines of a file are divided into words as in a shell, # begins a comment, and blank lines are skipped. A file names
    no further files.

    Raises:
        ValueError: a file cannot be read as text, or a line cannot be divided; one line, which names the file.
    """
    for word in words:
        if word.startswith("@"):
            yield from _read_words(word[1:])
        else:
            yield word


def _read_words(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise ValueError(f"@{path}: cannot be read ({error.strerror}), expected a file of flags") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"@{path}: is not UTF-8, expected a text file of flags") from error
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ValueError(f"@{path}: line {number}: {error}, expected flags as in a shell") from error
        if further := [word for word in words if word.startswith("@")]:
            raise ValueError(f"@{path}: line {number}: found {further[0]}, expected flags, not another file")
        yield from words

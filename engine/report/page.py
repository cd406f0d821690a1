"""Blocks of which the page of a report consists, and the page as HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.runtime.errors import InputError

GENERATOR = "Rep3D tools.report"  # marks a page as one that may be replaced
START_BYTES = 1000  # of a page, which hold the mark


@dataclass(frozen=True)
class Text:
    """Paragraph; a warning stands out."""

    text: str
    warning: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Table:
    """Table whose first column names the rows; folded tables are opened by a click."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """Picture as a data URI, with the text that stands for it and a caption."""

    uri: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side where there is room, or each of full width."""

    pictures: Sequence[Picture]
    wide: bool = False
    kind: str = "pictures"


Block = Text | Facts | Table | Pictures


@dataclass(frozen=True)
class Section:
    """Section of a page: its heading, and its blocks."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Name of the section in the page's links."""
        return re.sub(r"\W+", "-", self.title.lower())


def render_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Make the page; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("report.html.jinja")
    return template.render(title=title, lead=lead, sections=sections, generator=GENERATOR)


def check_replaceable(path: Path) -> None:
    """Make sure that a page may be written: there is no such file, or it is an earlier page.

    Raises:
        InputError: it is something else.
    """
    if not path.exists():
        return
    try:
        with open(path, "rb") as file:
            own = GENERATOR.encode() in file.read(START_BYTES)
    except OSError as error:
        raise InputError(f"--output: {path} cannot be read ({error.strerror}), expected a file") from error
    if not own:
        raise InputError(f"--output: {path} exists and is no report of this command, expected another name")

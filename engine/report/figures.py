"""Matplotlib figures that become part of a page: SVG that follows the reader's light or dark mode, or WebP."""

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, GREY, LINE = "#1b2a38", "#808b96", "#2f7fc1"  # text, frames, and a single curve
LIGHT, DARK = "#1b2a38", "#e3e8ee"  # what stands for the ink in each mode
MODES = f"<style>svg{{--ink:{LIGHT}}}@media(prefers-color-scheme:dark){{svg{{--ink:{DARK}}}}}</style>"
PLAIN_TEXT = {"text.parse_math": False}  # a name may have dollar signs, which mean no formula
CHARTS = {
    **PLAIN_TEXT,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), GREY),
    **{f"boxplot.{part}props.color": INK for part in ("box", "whisker", "cap", "median")},
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3},
    **{"font.size": 9, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.4},
    # Text stays text: the reader's fonts have all letters. The salt makes the ids of two runs of the program equal.
    **{"svg.fonttype": "none", "svg.hashsalt": "rep3d"},
}
VOLUMES = {
    **PLAIN_TEXT,
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor"), "#101418"),
    **dict.fromkeys(("text.color", "axes.labelcolor"), "#e3e8ee"),
}


@contextmanager
def drawing(style: dict[Any, Any]) -> Iterator[None]:
    """Draw and encode with a style, and without warnings of letters that Matplotlib's own font lacks."""
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def make_chart(width: float = 5, height: float = 3) -> Figure:
    """Make an empty figure, sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def encode_svg(figure: Figure) -> str:
    """Encode a figure as the data URI of an SVG picture, whose ink is dark on a light page and light on a dark one."""
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue().replace(INK, "var(--ink)").replace("<defs>", f"{MODES}<defs>", 1)
    return to_uri("image/svg+xml", text.encode())


def encode_webp(figure: Figure) -> str:
    """Encode a figure as the data URI of a WebP picture, a fraction of the size of a PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="webp", dpi=100, pil_kwargs={"quality": 85})
    return to_uri("image/webp", content.getvalue())


def to_uri(kind: str, content: bytes) -> str:
    """Write a file as a data URI, which a page holds in place of an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

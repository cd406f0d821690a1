"""The report in a real browser: every picture loads, nothing is wider than the window, light and dark."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from engine.runtime.errors import run
from tools import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian package chromium)")
WIDTHS = (400, 1280)
# Without the background networking it does not look for other machines; a dark mode is a setting of the browser.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--allow-file-access-from-files",
    ),
)
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
# A headless window is at least 500 wide, so each width is a frame of its own.
MEASURE = """
onload = () => {
  document.body.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(element => {
    const frame = element.contentWindow, page = frame.document, root = page.documentElement;
    const pictures = [...page.images];
    return {
      width: root.clientWidth, needed: root.scrollWidth, height: root.scrollHeight, pictures: pictures.length,
      loaded: pictures.filter(picture => picture.complete && picture.naturalWidth > 50).length,
      outside: [...page.querySelectorAll("p, figure, dd, h1, h2")]
        .filter(part => part.getBoundingClientRect().right > root.clientWidth).map(part => part.textContent),
      ink: frame.getComputedStyle(page.body).color, paper: frame.getComputedStyle(page.body).backgroundColor,
    };
  }));
};
"""


def browse(folder, page, *flags):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def page(trained, predicted, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    words = [str(trained), str(predicted), "--output", str(path)]
    assert run(report.main, report.parse_args(words)) == 0
    return path


def measure(page, folder, *flags):
    """Return what the browser finds in frames of different widths."""
    text = html.escape(page.read_text())
    frames = "".join(f'<iframe width="{width}" height="800" srcdoc="{text}"></iframe>' for width in WIDTHS)
    wrapper = folder / "frames.html"
    wrapper.write_text(f"<!DOCTYPE html><style>iframe {{ border: 0 }}</style>{frames}<script>{MEASURE}</script>")
    dumped = browse(folder, wrapper, "--dump-dom", "--virtual-time-budget=10000", *flags)
    return json.loads(html.unescape(re.search(r"<body>(\[.*\])</body>", dumped, re.DOTALL)[1]))


def test_every_picture_loads_and_nothing_is_too_wide(page, tmp_path):
    for found, width in zip(measure(page, tmp_path), WIDTHS, strict=True):
        assert found["width"] == width
        assert found["needed"] <= width
        assert found["outside"] == []
        assert found["loaded"] == found["pictures"] == 10
        assert 2_000 < found["height"] < 20_000


def test_dark_mode_swaps_ink_and_paper(page, tmp_path):
    modes = [measure(page, tmp_path, *flags)[0] for flags in ((), DARK)]
    brightness = [[sum(map(int, re.findall(r"\d+", mode[part])[:3])) for part in ("ink", "paper")] for mode in modes]
    (ink, paper), (dark_ink, dark_paper) = brightness
    assert ink < 200 < 700 < paper
    assert dark_paper < 100 < 600 < dark_ink


@pytest.mark.parametrize("flags", [(), DARK])
def test_the_screenshot_has_text_and_charts_within_margins(page, tmp_path, flags):
    browse(tmp_path, page, "--window-size=1280,2600", f"--screenshot={tmp_path / 'page.png'}", *flags)
    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (2600, 1280, 3)
    assert (pixels[:, -8:] == pixels[0, 0]).all()  # the right margin
    differs = np.abs(pixels - pixels[0, 0]).sum(axis=2) > 60
    assert differs.mean() > 0.02
    bands = differs.reshape(26, 100, 1280).any(axis=(1, 2))
    assert bands.all()  # no empty stretch
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200


def test_the_page_prints(page, tmp_path):
    browse(tmp_path, page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 12

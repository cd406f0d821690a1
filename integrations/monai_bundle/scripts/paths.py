"""Where the bundle is."""

from pathlib import Path


def find_bundle() -> str:
    """Return the bundle's folder, so that the working directory does not matter."""
    return str(Path(__file__).resolve().parents[1])

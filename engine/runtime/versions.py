"""Versions of the software that a run depends on."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel")
ROOT = Path(__file__).parents[2]


def software_versions() -> dict[str, str]:
    """Return the versions of Python, the packages that decide a result, and this program, by name."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # imported from a folder without metadata
            found[package] = "unknown"
    return {**found, "rep3d commit": find_commit()}


def find_commit() -> str:
    """Return the commit of this clone, with "changed" if tracked files differ from it.

    Outside a clone it is what the variable REP3D_COMMIT says, which the Dockerfile sets, or "unknown".
    """
    outside = os.environ.get("REP3D_COMMIT", "unknown")
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != ROOT.resolve():  # a copy within another repository
            return outside
        commit = _git("rev-parse", "--short=12", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return outside
    return f"{commit} (changed)" if changes else commit


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

"""Versions of the software of a run."""

import shutil
import subprocess

import torch

from engine.runtime import versions


def test_packages_have_the_versions_that_are_imported():
    found = versions.software_versions()
    # PyPI's package for GPUs is version 2.13.0, say, and its module 2.13.0+cu130.
    assert found["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    assert list(found) == ["python", *versions.PACKAGES, "rep3d commit"]


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_the_commit_is_that_of_the_clone_with_its_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    assert versions.find_commit() == "unknown"
    git(tmp_path, "init")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    commit = versions.find_commit()
    assert len(commit) == 12
    (tmp_path / "file").write_text("two")
    assert versions.find_commit() == f"{commit} (changed)"
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(versions, "ROOT", tmp_path / "copy")  # a copy of the program within another repository
    assert versions.find_commit() == "unknown"


def test_without_git_the_commit_is_that_of_the_image_or_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert shutil.which("git") is None
    assert versions.find_commit() == "unknown"
    monkeypatch.setenv("REP3D_COMMIT", "0123456789ab")  # as the Dockerfile does
    assert versions.find_commit() == "0123456789ab"


def test_a_clone_has_its_own_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("REP3D_COMMIT", "0123456789ab")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    assert versions.find_commit() not in ("0123456789ab", "unknown")

"""Files are written completely or not at all, even if the disk fails."""

import errno
import os

import pytest
import torch

from engine.runtime.errors import DiskError
from engine.runtime.files import write_whole


def test_a_disk_that_becomes_read_only_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = tmp_path / "last.pth"
    write_whole(path, lambda file: file.write(b"old"))
    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "unlink")):
            patch.setattr(module, name, fail)
        with pytest.raises(DiskError, match="Read-only file system"):
            write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"


def test_other_errors_while_writing_are_not_reported_as_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="inconsistent"):
        write_whole(tmp_path / "file", lambda file: torch.ones(2) @ torch.ones(3))
    assert not list(tmp_path.iterdir())

"""Files are written completely or not at all, even if the disk fails."""

import errno
import os

import pytest
import torch

from engine.runtime.errors import DiskError, InputError
from engine.runtime.files import new_output, write_whole


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


def test_a_folder_or_file_is_new_output(tmp_path):
    with new_output(tmp_path / "new" / "file", "--output") as path:
        path.write_text("whole")
        assert not (tmp_path / "new" / "file").exists()
    with new_output(tmp_path / "folder", "--output") as path:
        path.mkdir()
        (path / "part").write_text("whole")
    assert (tmp_path / "new" / "file").read_text() == (tmp_path / "folder" / "part").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "new", "part"]


@pytest.mark.parametrize("error", [InputError("a problem"), KeyboardInterrupt()])
def test_a_failure_leaves_neither_file_nor_folder(error, tmp_path):
    def fail(make):
        with new_output(tmp_path / "new", "--output") as path:
            make(path)
            raise error

    for make in (lambda path: path.write_text("part"), lambda path: path.mkdir()):
        with pytest.raises(type(error)):
            fail(make)
        assert not list(tmp_path.iterdir())


def test_the_rest_of_a_killed_process_is_removed(tmp_path):
    (tmp_path / ".new.part").mkdir()
    (tmp_path / ".new.part" / "rest").write_text("")
    with new_output(tmp_path / "new", "--output") as path:
        path.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_exists_stays(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with (
            pytest.raises(InputError, match=f"--output: .*{name} exists, expected a new name"),
            new_output(tmp_path / name, "--output"),
        ):
            pytest.fail("began to write")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskError), (errno.EACCES, InputError)])
def test_a_failure_to_write_names_the_flag_and_the_final_name(number, kind, tmp_path):
    with (
        pytest.raises(kind, match=f"--output: {tmp_path}/new cannot be written .*, expected") as caught,
        new_output(tmp_path / "new", "--output"),
    ):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is kind

"""Sources: the same members from a folder, a .zip and a .tar, without what macOS adds."""

import gzip

import archive_layouts as layouts
import pytest

from engine.archives.sources import PackedMember, open_source, unpack
from engine.archives.whole import check_whole
from engine.runtime.errors import InputError

FILES = {"top/a.txt": b"first", "top/deep/b.txt": b"second" * 1000}
DOUBLES = layouts.with_macos(layouts.with_apple_doubles(FILES)) | {"top/.hidden/c.txt": b""}
WRITERS = {
    "folder": layouts.write_folder,
    "a.zip": layouts.write_zip,
    "a.tar": layouts.write_tar,
    "a.tar.gz": layouts.write_tar,
}


@pytest.mark.parametrize("name", WRITERS)
def test_members_are_read_alike(tmp_path, name):
    source = open_source(WRITERS[name](tmp_path / name, DOUBLES))
    (tmp_path / "work").mkdir()
    unpack(source.members.values(), tmp_path / "work")
    assert {name: source.read(name) for name in source.members} == FILES
    assert (source.members["top/a.txt"].path is not None) == (name == "folder")
    assert sorted(source.below("top/").members) == ["a.txt", "deep/b.txt"]


def test_the_copies_of_an_interrupted_unpacking_are_kept(tmp_path):
    source = open_source(layouts.write_tar(tmp_path / "a.tgz", FILES))
    work = tmp_path / "work"
    work.mkdir()
    for _ in range(2):
        unpack(source.members.values(), work)
        member = source.members["top/a.txt"]
        assert isinstance(member, PackedMember)
        member.unpacked.write_bytes(b"other")  # of the same size
    assert source.read("top/a.txt") == b"other"


def test_the_copies_are_told_apart_when_fewer_members_are_wanted(tmp_path):
    """After an interruption the finished cases are not read again, and volumes of the others may be equally large."""
    files = {f"top/{name}.nii": name.encode() * 9 for name in "abc"}
    path = layouts.write_tar(tmp_path / "a.tgz", files)
    for wanted in ("abc", "bc", "c"):
        source = open_source(path)
        unpack((source.members[f"top/{name}.nii"] for name in wanted), tmp_path)
        assert {name: source.read(f"top/{name}.nii") for name in wanted} == {name: name.encode() * 9 for name in wanted}


def test_the_copies_of_two_archives_are_told_apart(tmp_path):
    for name in ("images", "labels"):
        layouts.write_tar(tmp_path / "a.tgz", {"a.nii": name.encode()}).rename(tmp_path / f"{name}.tar")
    source = open_source(tmp_path)
    (tmp_path / "work").mkdir()
    unpack(source.members.values(), tmp_path / "work")
    assert {name: source.read(name) for name in source.members} == {
        "images/a.nii": b"images",
        "labels/a.nii": b"labels",
    }


def test_archives_in_a_folder_count_as_folders_unless_they_are_unpacked(tmp_path):
    layouts.write_zip(tmp_path / "in" / "images.zip", {"a.txt": b"packed"})
    layouts.write_zip(tmp_path / "in" / "labels.zip", {"b.txt": b"packed"})
    layouts.write_folder(tmp_path / "in" / "labels", {"b.txt": b"unpacked"})
    source = open_source(tmp_path / "in")
    assert {name: source.read(name) for name in source.members} == {
        "images/a.txt": b"packed",
        "labels/b.txt": b"unpacked",
    }


def test_a_link_to_a_folder_above_ends(tmp_path):
    layouts.write_folder(tmp_path / "in", {"a/b.txt": b""})
    (tmp_path / "in" / "a" / "loop").symlink_to(tmp_path / "in")
    assert list(open_source(tmp_path / "in").members) == ["a/b.txt"]


def check_bytes(tmp_path, content):
    check_whole(open_source(layouts.write_folder(tmp_path / "in", {"a.nii.gz": content})).members["a.nii.gz"])


def test_volumes_are_whole_whether_compressed_or_not(tmp_path):
    check_bytes(tmp_path, layouts.image())
    check_bytes(tmp_path, gzip.decompress(layouts.image()))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"text", "not a NIfTI file"),
        (layouts.image()[:-4], "end-of-stream"),
        (gzip.compress(gzip.decompress(layouts.image())[:-1]), "it has 591 of the 592 bytes that its header declares"),
    ],
    ids=["empty", "text", "cut off", "a byte short"],
)
def test_volumes_that_are_not_whole(tmp_path, content, reason):
    with pytest.raises(InputError, match=reason):
        check_bytes(tmp_path, content)

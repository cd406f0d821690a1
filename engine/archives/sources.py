"""The files of a downloaded archive: a folder, a .zip or a .tar, whose members are read without unpacking the rest."""

import functools
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from uuid import uuid4

from engine.data.nifti import GZIP
from engine.runtime.errors import InputError
from engine.runtime.files import write_whole

ZIPS, TARS = (".zip",), (".tar", ".tar.gz", ".tgz")
IN_A_FOLDER = (".zip", ".tar")  # archives that are opened where they lie beside other files
DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)  # raised by reading a damaged archive
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
TEXTS, LARGEST_TEXT = (".json", ".csv"), 2**24  # endings, and bytes
ENCRYPTED = 1  # bit of a zip member's flags
EXPECTED = "expected a folder, or an archive that ends with .zip, .tar, .tar.gz or .tgz"


class Member(ABC):
    """File of a source. As text it is what messages call it."""

    path: Path | None = None  # of a file of its own on the disk, to which a link can point

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open the file for reading; several threads may do so at the same time."""

    def is_compressed(self) -> bool:
        """Check whether the file is compressed by gzip, whatever its name says."""
        with self.open() as file:
            return file.read(len(GZIP)) == GZIP


@dataclass(frozen=True)
class PlainFile(Member):
    """File in a folder."""

    path: Path

    def open(self) -> BinaryIO:
        """Open the file."""
        return open(self.path, "rb")

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ZipMember(Member):
    """Member of a zip file, whose checksum is verified by reading it to its end."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def open(self) -> BinaryIO:
        """Open the member."""
        return self.archive.open(self.info)  # type: ignore[return-value]

    def __str__(self) -> str:
        return f"{self.archive.filename}: {self.info.filename}"


@dataclass(frozen=True)
class TarMember(Member):
    """Member of a tar file that is not compressed: a range of its bytes."""

    archive: Path
    name: str
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """Open the member."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"


@dataclass
class PackedMember(Member):
    """Member of a compressed tar file, which can only be read from its beginning: ``unpack`` comes first.

    Args:
        archive: the tar file.
        name: name of the member.
        size: its bytes.
        text: content of a description or a table, which is kept when the archive is listed.
        unpacked: copy of the member, once there is one.
    """

    archive: Path
    name: str
    size: int
    text: bytes | None = None
    unpacked: Path | None = None

    def open(self) -> BinaryIO:
        """Open the copy, or the text."""
        if self.text is not None:
            return io.BytesIO(self.text)
        assert self.unpacked is not None
        return open(self.unpacked, "rb")

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"


@dataclass(frozen=True)
class Source:
    """Downloaded archive.

    Args:
        path: the folder or file.
        members: files by name, "/" between its parts; without hidden files, such as the ._ files of macOS.
    """

    path: Path
    members: dict[str, Member] = field(repr=False)

    def below(self, folder: str) -> "Source":
        """Return the part of the source in one of its folders, with names that begin there."""
        inside = {name.removeprefix(folder): member for name, member in self.members.items() if name.startswith(folder)}
        return Source(self.path, inside)

    def read(self, name: str) -> bytes:
        """Read a small file.

        Raises:
            InputError: it cannot be read.
        """
        member = self.members[name]
        try:
            with member.open() as file:
                return file.read()
        except DAMAGE as error:
            raise InputError(f"{member}: cannot be read ({error}), expected a whole file") from error


def open_source(path: Path) -> Source:
    """List the files of a downloaded archive.

    Archives (.zip, .tar) in a folder count as folders, unless they are unpacked beside.

    Raises:
        InputError: the archive is missing, of another format, cut off or encrypted, or has names that lead out of it.
    """
    if path.is_dir():
        return Source(path, dict(_list_folder(path)))
    if not path.exists():
        raise InputError(f"--source: {path} not found, {EXPECTED}")
    if not path.name.lower().endswith((*ZIPS, *TARS)):
        raise InputError(f"--source: found {path}, {EXPECTED}")
    return Source(path, dict(_list_archive(path)))


def _list_folder(root: Path) -> Iterator[tuple[str, Member]]:
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if _is_wanted(name))
        for name in sorted(filter(_is_wanted, names)):
            path = Path(folder, name)
            inside = path.relative_to(root).as_posix()
            if not name.lower().endswith(IN_A_FOLDER):
                yield inside, PlainFile(path)
            elif path.stem not in subfolders:
                folder_name = os.path.splitext(inside)[0]
                yield from ((f"{folder_name}/{below}", member) for below, member in _list_archive(path))


def _list_archive(path: Path) -> Iterator[tuple[str, Member]]:
    try:
        listed = _list_zip(path) if path.name.lower().endswith(ZIPS) else _list_tar(path)
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read ({error}), expected a whole archive; download it again") from error
    for name, member in listed:
        inside = PurePosixPath(name.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"{path}: found the member {name!r}, expected names that stay inside the archive")
        if all(map(_is_wanted, inside.parts)):
            yield str(inside), member


def _list_zip(path: Path) -> list[tuple[str, Member]]:
    archive = zipfile.ZipFile(path)  # stays open: its members are read later
    infos = [info for info in archive.infolist() if not info.is_dir()]
    for info in infos:
        if info.flag_bits & ENCRYPTED:
            raise InputError(f"{path}: {info.filename} is encrypted, expected an archive without a password")
        if info.compress_type not in METHODS:
            raise InputError(f"{path}: {info.filename} is compressed by method {info.compress_type}, expected deflate")
    return [(info.filename, ZipMember(archive, info)) for info in infos]


def _list_tar(path: Path) -> list[tuple[str, Member]]:
    if PlainFile(path).is_compressed():
        return list(_list_packed(path))
    with tarfile.open(path, "r:") as archive:
        found = [info for info in archive if info.isreg()]
        if not _ends_properly(path, archive.offset):  # tarfile takes a header that is cut off for the end
            raise tarfile.ReadError("unexpected end of data")
    return [(info.name, TarMember(path, info.name, info.offset_data, info.size)) for info in found]


def _list_packed(path: Path) -> Iterator[tuple[str, Member]]:
    for info, content in _read_packed(path):
        is_text = info.name.endswith(TEXTS) and info.size <= LARGEST_TEXT
        yield info.name, PackedMember(path, info.name, info.size, content.read() if is_text else None)


def _read_packed(path: Path) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """Yield the members of a compressed tar file with their content, which is read before the next, or not at all."""
    with gzip.open(path) as file:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for info in archive:
                if info.isreg():
                    content: Any = archive.extractfile(info)
                    yield info, content
        while file.read(2**20):  # to the checksum at the end
            pass


def _ends_properly(path: Path, end: int) -> bool:
    """Check that a block of zeros follows the last member of a tar file."""
    with open(path, "rb") as file:
        file.seek(end)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _is_wanted(part: str) -> bool:
    """Check a part of a name: hidden files, and macOS's second tree of them, are no data."""
    return not part.startswith(".") and part != "__MACOSX"


def unpack(members: Iterable[Member], folder: Path) -> None:
    """Copy those members that are in compressed tar files to a folder, reading each archive once.

    Args:
        members: members that are to be read.
        folder: folder for the copies; those of an interrupted call are kept.
    Raises:
        InputError: the archive is damaged.
    """
    wanted: dict[Path, dict[str, PackedMember]] = {}
    for member in members:
        if isinstance(member, PackedMember):
            wanted.setdefault(member.archive, {})[member.name] = member
    for path, packed in wanted.items():
        for packed_member in packed.values():
            # The same name in each call, whichever members it needs: a size alone does not tell volumes apart.
            digest = hashlib.sha256(os.fsencode(str(packed_member))).hexdigest()
            packed_member.unpacked = folder / digest
        _unpack_archive(path, packed)


def _unpack_archive(path: Path, packed: dict[str, PackedMember]) -> None:
    try:
        for info, content in _read_packed(path):
            member = packed.get(info.name)
            if member is not None and not _is_there(member):
                assert member.unpacked is not None
                write_whole(member.unpacked, functools.partial(shutil.copyfileobj, content))
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read ({error}), expected a whole archive; download it again") from error


def _is_there(member: PackedMember) -> bool:
    assert member.unpacked is not None
    return member.unpacked.is_file() and member.unpacked.stat().st_size == member.size


@contextmanager
def as_file(member: Member, folder: Path) -> Iterator[str]:
    """Yield the path of a member as a file: its own, or that of a temporary copy.

    Args:
        member: the member.
        folder: folder for the copy.
    """
    if member.path is not None:
        yield str(member.path)
        return
    copy = folder / f"{uuid4().hex}.nii{'.gz' if member.is_compressed() else ''}"
    try:
        with member.open() as file, open(copy, "wb") as target:
            shutil.copyfileobj(file, target)
        yield str(copy)
    finally:
        copy.unlink(missing_ok=True)

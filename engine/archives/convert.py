"""From a case in an archive to a case in a dataset folder: files placed, label maps rewritten where they have to be."""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.archives.find import ArchiveCase
from engine.archives.kinds import Kind
from engine.archives.sources import Member, as_file
from engine.archives.whole import check_whole
from engine.data.datasets import LabelValues
from engine.data.header_checks import AFFINE_TOLERANCE, Grid, corner_distance, format_size
from engine.data.labels import to_classes, to_file_values
from engine.data.nifti import encode_labels, open_volume, read_voxels
from engine.runtime.errors import DiskError, InputError
from engine.runtime.files import write_whole

LINKS = ("symbolic", "hard", "copy")
# Changes that are counted, by the words in which they are reported.
DROPPED_FILES, DROPPED_VOXELS = "label maps with values that became background", "voxels that became background"
ALIGNED = "label maps that got the affine of their image"
OVERLAPS, ABSENT, EMPTY = "voxels in several masks", "masks that are not there and count as empty", "empty label maps"


class Target(NamedTuple):
    """Where cases go.

    Args:
        root: the dataset folder.
        work: folder for temporary copies.
        link: how files that need no change are placed, one of ``LINKS``.
        labels: values of the classes.
    """

    root: Path
    work: Path
    link: str
    labels: LabelValues


def output_files(case: ArchiveCase) -> list[str]:
    """Return the files of a case below the dataset folder: images, then the label map, if any."""
    return [*_output_images(case), *([_output_label(case)] if case.labels else [])]


def _output_images(case: ArchiveCase) -> dict[str, Member]:
    """Return what each image of the dataset folder is a copy of; a single channel has no ending."""
    several = len(case.images) > 1
    return {
        f"images{case.part}/{case.id}{ending if several else ''}{_extension(member)}": member
        for ending, member in case.images.items()
    }


def _output_label(case: ArchiveCase) -> str:
    return f"labels{case.part}/{case.id}{_extension(case.labels['']) if '' in case.labels else '.nii.gz'}"


def needed_files(case: ArchiveCase, kind: Kind) -> list[Member]:
    """Return the files of an archive that a case is made of: images, and its label map or the masks of classes."""
    classes = kind.classes or {}
    return [*case.images.values(), *(file for name, file in case.labels.items() if not name or name in classes)]


def _extension(member: Member) -> str:
    return ".nii.gz" if str(member).lower().endswith(".gz") else ".nii"


def convert_case(case: ArchiveCase, kind: Kind, target: Target) -> Counter[str]:
    """Write a case, or nothing of it.

    Args:
        case: the case.
        kind: its kind.
        target: where it goes.
    Returns: number of each change.
    Raises:
        InputError: a file is damaged, or image and label do not fit together.
    """
    for member in needed_files(case, kind):
        check_whole(member)
    written = [target.root / name for name in output_files(case)]
    try:
        for path, member in zip(written, _output_images(case).values(), strict=False):
            place(member, path, target.link)
        return _write_label(case, kind, target, str(written[0]), written[-1]) if case.labels else Counter()
    except InputError:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _write_label(case: ArchiveCase, kind: Kind, target: Target, image: str, path: Path) -> Counter[str]:
    """Write the label map of a case: as it is, or changed.

    Args:
        case: the case.
        kind: its kind.
        target: where it goes.
        image: path of the case's image.
        path: path of the label map.
    """
    with ExitStack() as stack:
        if "" not in case.labels:
            merged, changes = merge_masks(case, kind, image, target.work)
        else:
            label = stack.enter_context(as_file(case.labels[""], target.work))
            distance = _affine_distance(label, image, str(case.labels[""])) if kind.align else 0
            if not kind.dropped and not distance:
                place(case.labels[""], path, target.link)
                return Counter()
            merged, changes = clean_label(label, str(case.labels[""]), target.labels, kind.dropped)
            if not distance and not changes:
                place(case.labels[""], path, target.link)
                return Counter()
            changes[ALIGNED] = int(distance != 0)
    encoded = encode_labels(merged, image)
    write_whole(path, lambda file: file.write(encoded))
    return +changes


def place(member: Member, path: Path, link: str) -> None:
    """Place a file of an archive: a link or a copy of a file on the disk, the content of any other.

    Args:
        member: the file.
        path: where it goes; replaced if it exists.
        link: one of ``LINKS``.
    Raises:
        DiskError: the disk has no such links.
    """
    if member.path is None or link == "copy":
        with member.open() as file:
            write_whole(path, lambda target: shutil.copyfileobj(file, target))
        return
    aside = path.with_name(f".{path.name}.link")  # not write_whole's name, which it opens for writing
    aside.unlink(missing_ok=True)
    try:
        if link == "symbolic":
            aside.symlink_to(member.path.absolute())
        else:
            os.link(os.path.realpath(member.path), aside)
        os.replace(aside, path)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            expected = f"expected a disk of --output that has {link} links to it, or --link copy"
            raise DiskError(f"--link: {member}: cannot be linked ({error.strerror}), {expected}") from error
        raise
    finally:
        aside.unlink(missing_ok=True)  # os.replace leaves both names if they are hard links to one file


def _affine_distance(label: str, image: str, name: str) -> float:
    """Return how far apart the corners of a label map and its image are, mm; 0 within the tolerance of the checks.

    Raises:
        InputError: their shapes differ.
    """
    volume, found = open_volume(image), open_volume(label)
    _require_shape(found.shape, volume.shape[:3], name, image)
    grid, expected = Grid(found.shape, found.affine), Grid(volume.shape[:3], volume.affine)
    distance = corner_distance(grid, expected)
    return distance if not distance <= AFFINE_TOLERANCE * min(expected.spacing) else 0.0


def _require_shape(found: Sequence[int], expected: Sequence[int], name: str, image: str) -> None:
    if tuple(found) != tuple(expected):
        sizes = f"found shape {format_size(found)}, expected {format_size(expected)}"
        raise InputError(f"{name}: {sizes} as in its image {image}")


def clean_label(path: str, name: str, labels: LabelValues, dropped: Sequence[int]) -> tuple[NDArray[Any], Counter[str]]:
    """Read a label map with some of its values turned into background.

    Args:
        path: path of the label map.
        name: what messages call it.
        labels: values of the classes.
        dropped: values that become background.
    Raises:
        InputError: the label map has other values.
    """
    voxels = read_voxels(path)
    known = LabelValues(((*labels.classes[0], *dropped), *labels.classes[1:]), labels.ignored)
    classes, problems = to_classes(voxels, known)
    if problems:
        raise InputError(f"{name}: {problems[0]}")
    count = int(np.isin(np.rint(voxels), dropped).sum()) if dropped else 0
    return to_file_values(classes, labels), +Counter({DROPPED_FILES: int(count > 0), DROPPED_VOXELS: count})


def merge_masks(case: ArchiveCase, kind: Kind, image: str, work: Path) -> tuple[NDArray[np.uint8], Counter[str]]:
    """Merge the masks of a case's classes in the order of their values: a later class overwrites an earlier one.

    Args:
        case: the case.
        kind: its kind, with the classes that are wanted.
        image: path of the case's image.
        work: folder for temporary copies.
    Returns: label map (X, Y, Z) on the grid of the image, and what was found.
    Raises:
        InputError: a mask has another shape than the image.
    """
    assert kind.classes is not None
    shape = open_volume(image).shape[:3]
    merged = np.zeros(shape, np.uint8)
    changes: Counter[str] = Counter()
    for name, value in kind.classes.items():
        if value == 0:
            continue
        if name not in case.labels:
            changes[ABSENT] += 1
            continue
        with as_file(case.labels[name], work) as path:
            mask = read_voxels(path) > 0
        _require_shape(mask.shape, shape, str(case.labels[name]), image)
        changes[OVERLAPS] += int(np.count_nonzero(merged[mask]))
        merged[mask] = value
    changes[EMPTY] = int(not merged.any())
    return merged, +changes

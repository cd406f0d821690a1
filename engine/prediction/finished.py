"""State of the folder of predictions: the cases that are finished in it, and their settings."""

import errno
import hashlib
import itertools
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from engine.data.cases import Case, image_files
from engine.data.datasets import DatasetDescription, LabelValues
from engine.data.folders import PREDICTION_ENDING, SETTINGS
from engine.data.labels import to_classes, to_file_values
from engine.data.nifti import open_volume, read_voxels
from engine.prediction.outputs import picture_path, prediction_path
from engine.prediction.records import (
    Record,
    describe_difference,
    differing_settings,
    note,
    read_record,
    save_record,
)
from engine.runtime.distributed import barrier, gather, process_rank, shard
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.files import combine_digests, digest_file, file_state
from engine.runtime.warning_lines import Warnings, print_warnings
from engine.runtime.wording import list_some

# Status of a prediction: valid; to be removed; unreadable; absent; written by somebody else; not known, because the
# image cannot be read at the moment.
FINISHED, OUTDATED, DAMAGED, MISSING = "finished", "outdated", "damaged", "missing"
FOREIGN, UNKNOWN = "foreign", "unknown"
SCORES = ("dice.csv", "dice.json")


def digest_weights(path: str) -> str:
    """Compute the SHA-256 of the file of ``--trained_weights``.

    Call it before the weights are read: if the file is replaced in between, the digest is that of the old file, and a
    later run with the new file does not mistake these predictions for its own.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"--trained_weights: {path} cannot be read ({error.strerror}), expected a checkpoint"
        ) from error


def prediction_settings(
    digest: str,
    network_flags: dict[str, Any],
    roi_size: Sequence[int],
    overlap: float,
    amp: str,
    description: DatasetDescription,
) -> dict[str, Any]:
    """Collect the settings that determine a prediction, as plain values; equal settings differ only by rounding.

    Args:
        digest: digest of the weights.
        network_flags: network, feat_size and kernel_size as flags, None for the checkpoint's value.
        roi_size: (D, H, W) of the window, voxels.
        overlap: overlap of sliding windows.
        amp: autocast precision, as ``--amp`` names it.
        description: description of the dataset.
    """
    return {
        "trained_weights": digest,
        **network_flags,
        "roi_size": list(roi_size),
        "overlap": overlap,
        "amp": amp,
        "dataset": description.to_json(),
    }


class Division(NamedTuple):
    """Cases by the state of their predictions in a folder.

    Args:
        finished: predicted from the same image with the same settings.
        missing: to be predicted.
        kept: label maps that somebody else has written or changed since, which stay.
    """

    finished: list[Case]
    missing: list[Case]
    kept: list[Case]


class Finding(NamedTuple):
    """State of one prediction.

    Args:
        status: ``FINISHED``, ``OUTDATED``, ``DAMAGED``, ``MISSING``, ``FOREIGN`` or ``UNKNOWN``.
        source: description of the image; None if it cannot be read.
        digest: of the label map, if it is the program's own.
    """

    status: str
    source: dict[str, Any] | None
    digest: str | None


def divide_cases(
    cases: Sequence[Case], folder: Path, settings: dict[str, Any], labels: LabelValues, overwrite: bool
) -> Division:
    """Divide cases by the state of their predictions in a folder, equally in every process.

    Afterwards the folder holds no prediction of this program with other settings or of another image, even if the run
    is killed at any moment: predictions of the same settings and image stay until a rename replaces them, all others
    are removed before the new settings are written. Label maps of others are replaced only with ``overwrite``.

    Args:
        cases: cases of all processes.
        folder: folder of predictions.
        settings: result of ``prediction_settings``.
        labels: values of the classes.
        overwrite: whether to predict all cases again.
    Raises:
        InputError: predictions that would stay were made with other settings, predictions would replace those of other
            images, or files of other programs.
    """
    record = read_record(folder)
    check_settings(folder, settings, record, [case["id"] for case in cases] if overwrite else [])
    if record is not None and differing_settings(settings, record.settings):
        record = record._replace(sources={})
    part = tqdm(shard(cases), "checking cases", leave=False, disable=process_rank() != 0)
    findings = gather([examine_prediction(folder, case, record, labels) for case in part])
    if not overwrite:
        check_sources(cases, findings, folder, record)
    division = Division([], [], [])
    for case, finding in zip(cases, findings, strict=True):
        if finding.status in (FINISHED, FOREIGN) and not overwrite:
            (division.finished if finding.status == FINISHED else division.kept).append(case)
        else:
            division.missing.append(case)
    if process_rank() == 0:
        by_id = dict(zip((case["id"] for case in cases), findings, strict=True))
        report_work_of_others(folder, division, by_id, record)
        clear_folder(folder, division, by_id, record, overwrite)
        write_record(folder, settings, division, cases, findings)
    barrier()
    return division


def report_work_of_others(
    folder: Path, division: Division, findings: dict[str, Finding], record: Record | None
) -> None:
    """Print a line about the label maps of others that are replaced, and one about those whose image has changed.

    Args: as ``clear_folder``.
    """
    replaced = [case["id"] for case in division.missing if findings[case["id"]].status == FOREIGN]
    if replaced:
        print(f"--overwrite: label maps that others have written or changed are replaced: {list_some(replaced)}")
    former = record.sources if record is not None else {}
    known = {name: source["digest"] for name, source in former.items() if "digest" in source}
    names = [case["id"] for case in division.kept]
    changed = [
        f"{prediction_path(folder, name)} is kept, but the image has changed since it was predicted"
        for name in names
        if (source := findings[name].source) is not None and known.get(name, source["digest"]) != source["digest"]
    ]
    print_warnings({"changed images": changed} if changed else {})


def clear_folder(
    folder: Path, division: Division, findings: dict[str, Finding], record: Record | None, overwrite: bool
) -> None:
    """Remove what must not be in a folder with the new settings: outdated predictions, their pictures, and scores.

    Args:
        folder: folder of predictions.
        division: cases by the state of their predictions.
        findings: states of the predictions by id.
        record: what is known of the folder, with the images of predictions that have the new settings.
        overwrite: whether pictures of others are put aside.
    """
    aside: Warnings = {}
    if record is None:  # such files exist with --overwrite only
        aside["unknown"] = [put_aside(folder / name) for name in (SETTINGS, *SCORES) if (folder / name).exists()]
    removed = [folder / name for name in SCORES] if division.missing or division.kept else []
    for name in (case["id"] for case in division.missing):
        status, path, picture = findings[name].status, prediction_path(folder, name), picture_path(folder, name)
        if status == DAMAGED:
            aside.setdefault("damaged", []).append(put_aside(path, "damaged"))
        # Nobody noted what earlier versions wrote, so with --overwrite any label map may have other settings.
        unsure = record is None or (record.written is None and name not in record.sources)
        removed += [path] if status == OUTDATED or (status == FOREIGN and unsure) else []
        if status != UNKNOWN and is_own_picture(picture, name, record):
            removed.append(picture)
        elif status != UNKNOWN and overwrite and os.path.exists(picture):
            aside.setdefault("pictures", []).append(put_aside(picture))
    remove_files(removed)
    print_warnings({kind: lines for kind, lines in aside.items() if lines})


def put_aside(path: Path, ending: str = "old") -> str:
    """Rename a file that this program has not written, or cannot read, and return a line about it.

    Args:
        path: file of an output folder.
        ending: what is added to its name, with a number if such a file exists.
    Raises:
        InputError: it cannot be renamed.
    """
    names = (f"{path.name}.{ending}{number or ''}" for number in itertools.count())
    aside = next(place for place in map(path.with_name, names) if not place.exists())
    try:
        os.replace(path, aside)
    except OSError as error:
        raise InputError(f"--output: {path} cannot be renamed ({error.strerror}), expected a file") from error
    reason = "cannot be read" if ending == "damaged" else "was not written by test_seg.py"
    return f"{path} {reason}, and is kept as {aside.name}"


def is_own_picture(path: Path, name: str, record: Record | None) -> bool:
    """Check that this program has written a picture; in a folder of an earlier version, that it knows the case."""
    if record is None:
        return False
    if record.written is None:
        return name in record.sources
    try:
        return digest_file(str(path)) in record.written.get(path.name, [])
    except OSError:
        return False


def write_record(
    folder: Path, settings: dict[str, Any], division: Division, cases: Sequence[Case], findings: Sequence[Finding]
) -> None:
    """Write the new settings, with the images of the cases and what the program has written so far.

    The folder is read again, because another run may have added cases in the meantime.
    """
    record = read_record(folder)
    same = record is not None and not differing_settings(settings, record.settings)
    sources = dict(record.sources) if record is not None and same else {}
    written = dict(record.written or {}) if record is not None else {}
    kept = {case["id"] for case in division.kept}
    for case, finding in zip(cases, findings, strict=True):
        if finding.source is not None and case["id"] not in kept:
            sources[case["id"]] = finding.source
        if finding.digest is not None:
            note(written, prediction_path(folder, case["id"]).name, [finding.digest])
    save_record(folder, Record(settings, sources, written))


def check_settings(folder: Path, settings: dict[str, Any], record: Record | None, replaced: Collection[str]) -> None:
    """Make sure that the predictions that stay in a folder were made with the same settings.

    Args:
        folder: folder of predictions.
        settings: result of ``prediction_settings``.
        record: what is known of the folder; None if it has no readable settings.
        replaced: ids of the cases to be predicted again.
    Raises:
        InputError: the settings differ, which it names, or files of another program would be replaced.
    """
    present = {path.name.removesuffix(PREDICTION_ENDING) for path in folder.glob(f"[!.]*{PREDICTION_ENDING}")}
    expected = "another folder" if replaced else "another folder, or --overwrite, which replaces them"
    if record is None and present - set(replaced):
        raise InputError(f"--output: {folder} holds label maps but no readable {SETTINGS}, expected {expected}")
    for path in (folder / name for name in (SETTINGS, *SCORES)):
        if record is None and not replaced and path.exists():
            raise InputError(f"--output: found {path}, which test_seg.py has not written, expected another folder")
    if record is None or not present - set(replaced):
        return
    if differing := differing_settings(settings, record.settings):
        found = ", ".join(describe_difference(name, record.settings.get(name), settings[name]) for name in differing)
        raise InputError(f"--output: {folder} holds predictions with {found}, expected {expected}")


def check_sources(cases: Sequence[Case], findings: Sequence[Finding], folder: Path, record: Record | None) -> None:
    """Make sure that no label map is taken for that of another image with the same name.

    Args:
        cases: cases to predict.
        findings: states of their predictions.
        folder: folder of predictions.
        record: what is known of the folder.
    Raises:
        InputError: one line for each label map whose image was another one in another place.
    """
    lines = []
    for case, finding in zip(cases, findings, strict=True):
        former = record.sources.get(case["id"], {}) if record is not None else {}
        elsewhere = former.get("paths") not in (None, _absolute_paths(case))
        another = finding.source is not None and former.get("digest") != finding.source["digest"]
        if finding.status in (OUTDATED, FOREIGN) and elsewhere and another:
            path, now = prediction_path(folder, case["id"]), image_files(case)[0]
            lines.append(f"--output: {path} was predicted from {former['paths'][0]}, not from {now}")
    raise_problems([f"{line}, expected another folder, or --overwrite, which replaces it" for line in lines])


def examine_prediction(folder: Path, case: Case, record: Record | None, labels: LabelValues) -> Finding:
    """Describe a case's image, and determine the state of its prediction.

    Args:
        folder: folder of predictions.
        case: case with "id" and "image".
        record: what is known of the folder, with the images of predictions that have the same settings.
        labels: values of the classes.
    """
    known = record.sources.get(case["id"]) if record is not None else None
    source = describe_source(case, known)
    status, digest = examine_file(folder, case, record, labels)
    if source is None and status != FOREIGN:  # the image may become readable again, unchanged
        status = OUTDATED if known is None else UNKNOWN
    elif status == FINISHED and (known is None or source is None or known.get("digest") != source["digest"]):
        status = OUTDATED
    return Finding(status, source, digest)


def examine_file(folder: Path, case: Case, record: Record | None, labels: LabelValues) -> tuple[str, str | None]:
    """Find out whether a case has a label map that the program has written.

    A file is its own if its digest was noted when it was written. In folders of earlier versions, which noted none, a
    file is its own if it is one that the program might write for the image.

    Args: as ``examine_prediction``.
    Returns: ``FINISHED`` for its own, whatever the image is now; ``MISSING``; ``DAMAGED`` for a file that nobody can
        read; ``FOREIGN`` for any other; and the digest of its own.
    """
    path = prediction_path(folder, case["id"])
    try:
        digest = digest_file(str(path))
    except OSError as error:
        return MISSING if error.errno in (errno.ENOENT, errno.ENAMETOOLONG) else FOREIGN, None
    if record is not None and digest in (record.written or {}).get(path.name, []):
        return FINISHED, digest
    try:
        read_voxels(str(path))
    except InputError:
        return DAMAGED, None
    noted = record is None or record.written is not None or case["id"] not in record.sources
    return (FOREIGN, None) if noted or not is_valid(path, case, labels) else (FINISHED, digest)


def describe_source(case: Case, known: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Digest the content of a case's image files, with their paths, sizes and times; None if one cannot be read.

    Args:
        case: case with its files.
        known: result of an earlier call; the same files, if their sizes and times are the same, are not read again.
    """
    files = image_files(case)
    try:
        state = [file_state(path) for path in files]
        identity = {"paths": _absolute_paths(case), "state": state}
        if known is not None and "digest" in known and identity.items() <= known.items():
            return known
        return {**identity, "digest": combine_digests(map(digest_file, files))}
    except OSError:
        return None


def is_valid(path: Path, case: Case, labels: LabelValues) -> bool:
    """Check that a label map is on its image's grid, and holds only known classes in the type that is written."""
    try:
        prediction, image = open_volume(str(path)), open_volume(image_files(case)[0])
        voxels = read_voxels(str(path))
    except InputError:  # whatever is wrong with either file, predicting the case will report or repair it
        return False
    same_grid = prediction.shape == image.shape[:3] and np.array_equal(prediction.affine, image.affine)
    expected = to_file_values(np.zeros(1, np.uint8), labels).dtype
    return bool(same_grid and voxels.dtype == expected and not to_classes(voxels, labels)[1])


def read_prediction(folder: Path, labels: LabelValues, case: Case) -> dict[str, Any]:
    """Read the label map of a finished case, and return the case with its class indices as "pred"."""
    path = str(prediction_path(folder, case["id"]))
    classes, problems = to_classes(read_voxels(path), labels)
    raise_problems([f"{path}: {problem}" for problem in problems])
    return {**case, "pred": classes}


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files of an output folder, if they exist."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # with that error no such file exists
                raise InputError(f"--output: {path} cannot be removed ({error.strerror}), expected a file") from error


def _absolute_paths(case: Case) -> list[str]:
    return list(map(os.path.abspath, image_files(case)))

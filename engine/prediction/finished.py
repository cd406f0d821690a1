"""State of the folder of predictions: the cases that are finished in it, and their settings."""

import errno
import itertools
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from engine.data.cases import Case, image_files
from engine.data.datasets import LabelValues
from engine.data.folders import PREDICTION_ENDING, SETTINGS
from engine.prediction.findings import (
    DAMAGED,
    FINISHED,
    FOREIGN,
    OUTDATED,
    UNKNOWN,
    Finding,
    absolute_paths,
    examine_prediction,
)
from engine.prediction.outputs import companion_paths, prediction_path, probability_path
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
from engine.runtime.files import digest_file
from engine.runtime.warning_lines import Warnings, print_warnings
from engine.runtime.wording import list_some

SCORES = ("dice.csv", "dice.json")


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


def divide_cases(
    cases: Sequence[Case],
    folder: Path,
    settings: dict[str, Any],
    labels: LabelValues,
    overwrite: bool,
    probabilities: str | None = None,
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
        probabilities: grid of the probabilities without which no prediction is finished; None if they are not needed.
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
        incomplete = probabilities is not None and not os.path.exists(
            probability_path(folder, case["id"], probabilities)
        )
        if overwrite or finding.status not in (FINISHED, FOREIGN) or (finding.status == FINISHED and incomplete):
            division.missing.append(case)
        else:
            (division.finished if finding.status == FINISHED else division.kept).append(case)
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
    """Remove what must not be in a folder with the new settings: outdated predictions, what is beside them, and scores.

    Args:
        folder: folder of predictions.
        division: cases by the state of their predictions.
        findings: states of the predictions by id.
        record: what is known of the folder, with the images of predictions that have the new settings.
        overwrite: whether pictures and probabilities of others are put aside.
    """
    aside: Warnings = {}
    if record is None:  # such files exist with --overwrite only
        aside["unknown"] = [put_aside(folder / name) for name in (SETTINGS, *SCORES) if (folder / name).exists()]
    removed = [folder / name for name in SCORES] if division.missing or division.kept else []
    for name in (case["id"] for case in division.missing):
        status, path = findings[name].status, prediction_path(folder, name)
        if status == DAMAGED:
            aside.setdefault("damaged", []).append(put_aside(path, "damaged"))
        # Nobody noted what earlier versions wrote, so with --overwrite any label map may have other settings.
        unsure = record is None or (record.written is None and name not in record.sources)
        removed += [path] if status == OUTDATED or (status == FOREIGN and unsure) else []
        # Beside a valid label map without probabilities everything is valid.
        outdated = overwrite or status not in (FINISHED, UNKNOWN)
        for companion in companion_paths(folder, name) if outdated else []:
            if is_own_companion(companion, name, record):
                removed.append(companion)
            elif overwrite and os.path.exists(companion):
                aside.setdefault("companions", []).append(put_aside(companion))
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


def is_own_companion(path: Path, name: str, record: Record | None) -> bool:
    """Check that this program has written a picture or probabilities.

    A folder of an earlier version can hold only pictures of its own, and does if it knows the case.
    """
    if record is None:
        return False
    if record.written is None:
        return name in record.sources and path.suffix == ".png"
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
        elsewhere = former.get("paths") not in (None, absolute_paths(case))
        another = finding.source is not None and former.get("digest") != finding.source["digest"]
        if finding.status in (OUTDATED, FOREIGN) and elsewhere and another:
            path, now = prediction_path(folder, case["id"]), image_files(case)[0]
            lines.append(f"--output: {path} was predicted from {former['paths'][0]}, not from {now}")
    raise_problems([f"{line}, expected another folder, or --overwrite, which replaces it" for line in lines])


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files of an output folder, if they exist."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # with that error no such file exists
                raise InputError(f"--output: {path} cannot be removed ({error.strerror}), expected a file") from error

"""The volumes in a folder: their ids, the files of each channel, and what is left out."""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.runtime.wording import count_of, list_some

# Endings of files that nobody takes for a volume.
OTHER_ENDINGS = (
    *(".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".log", ".pdf", ".ini", ".db", ".xlsx"),
    *(".py", ".sh", ".bval", ".bvec", ".png", ".jpg", ".jpeg"),
)
SIMILAR = 0.9  # ratio of difflib: imagesval is similar to imagesVal, imagesTr is not
MOST_CHANNELS = 4  # of a single id; more files in a row are rather as many cases
PREDICTION_ENDING = "_seg.nii.gz"  # of the label maps of test_seg.py, after the id
PROBABILITY_ENDINGS = {"native": "_prob_native.npz", "network": "_prob_network.npz"}  # of its probabilities, by grid
SETTINGS, SOURCES = "settings.json", "sources"  # file beside these label maps, and its field about them


class Volumes(NamedTuple):
    """Volumes of a folder.

    Args:
        paths: path of each volume by its id.
        problems: one line each.
        warnings: one line by kind.
    """

    paths: dict[str, str]
    problems: list[str]
    warnings: dict[str, str]


class Images(NamedTuple):
    """Images of a folder: one path, or a list of paths with one per channel, by id.

    Args:
        complete: images with all channels.
        incomplete: ids of the others.
        problems: one line each.
        warnings: one line by kind.
    """

    complete: dict[str, str | list[str]]
    incomplete: set[str]
    problems: list[str]
    warnings: dict[str, str]


def list_volumes(folder: Path, skip_predictions: bool = False) -> Volumes:
    """List the NIfTI files of a folder, or the one file, by id: the name without .nii or .nii.gz, in capitals or not.

    Args:
        folder: folder or file; hidden files are skipped.
        skip_predictions: whether to leave out what test_seg.py has written to the folder.
    """
    try:
        paths = [folder] if folder.is_file() else sorted(folder.iterdir())
    except FileNotFoundError:
        similar = _similar_folder(folder)
        beside = f" (beside it is {similar})" if similar else ""
        return Volumes({}, [f"{folder}: not found, expected a folder of .nii.gz or .nii files{beside}"], {})
    except OSError as error:
        return Volumes({}, [f"{folder}: cannot be read ({error.strerror}), expected a folder of volumes"], {})
    predictions = skip_predictions and folder.is_dir() and read_settings(folder) is not None
    volumes: dict[str, str] = {}
    problems, own, others, folders = [], [], [], []
    for path in paths:
        name = path.name
        if name.startswith("."):
            continue
        if path.is_dir():
            folders.append(f"{name}/")
        elif predictions and name.endswith((PREDICTION_ENDING, *PROBABILITY_ENDINGS.values())):
            own.append(name)
        elif (case := re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)) == name:
            others += [] if name.lower().endswith((*OTHER_ENDINGS, *PROBABILITY_ENDINGS.values())) else [name]
        elif case in volumes:
            problems.append(f"{path}: found {case} twice, expected either .nii or .nii.gz")
        else:
            volumes[case] = str(path)
    warnings = {}
    others += [name for name in folders if re.search(r"\.nii(\.gz)?/$", name, re.IGNORECASE)]
    if others:
        warnings["formats"] = f"{folder}: left out {list_some(others)}, expected .nii.gz or .nii files"
    if own:
        warnings["predictions"] = f"{folder}: left out {list_some(own)}, predictions of test_seg.py"
    if not volumes:
        found = f"no volume, only {list_some([*others, *own, *folders])}" if others or own or folders else "no volume"
        problems.append(f"{folder}: found {found}, expected .nii.gz or .nii files")
    return Volumes(volumes, problems, warnings)


def _similar_folder(folder: Path) -> str | None:
    """Return the name of a folder beside a missing one that somebody may have meant by it."""
    try:
        names = {path.name.lower(): path.name for path in folder.parent.iterdir() if path.is_dir()}
    except OSError:
        return None
    similar = difflib.get_close_matches(folder.name.lower(), names, 1, cutoff=SIMILAR)
    return names[similar[0]] if similar else None


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Read what test_seg.py has written about its predictions in a folder; None if there is nothing valid."""
    try:
        values = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get(SOURCES), dict) else None


def group_channels(
    folder: Path, volumes: dict[str, str], channels: int, endings: Sequence[str], labels: dict[str, str]
) -> Images:
    """Group the files of each image.

    With ``endings``, the files of a case are <id><ending>. Without, they may be <id>_0000, <id>_0001, ..., as in
    nnU-Net. A single channel is read in this form if the labels are named <id>. Several channels are, unless the labels
    have the same names as the images; then each file is a case, with the channels as its fourth dimension.

    Args:
        folder: folder of the images, for messages.
        volumes: paths by the names of the files.
        channels: number of channels.
        endings: of each channel's file, or none.
        labels: paths of the labels by id, if there are any.
    """
    groups: dict[str, dict[str, str]] = {}
    left_out = []
    for name, path in volumes.items():
        case, ending = _split(name, endings)
        if endings and not ending:
            left_out.append(Path(path).name)
        else:
            groups.setdefault(case, {})[ending] = path
    expected = list(endings) or [f"_{channel:04d}" for channel in range(channels)]
    complete = {case for case, files in groups.items() if files.keys() == set(expected)}
    whole = volumes.keys() & labels.keys() if labels else channels == 1
    if not endings and (whole or not (complete or groups.keys() & labels.keys())):
        unsure = channels == 1 and not volumes.keys() <= labels.keys()
        return Images(dict(volumes), set(), [], _warn_of_channels(folder, groups) if unsure else {})
    paths = {case: [groups[case][ending] for ending in expected] for case in groups if case in complete}
    warnings = {}
    if left_out:
        named = f"{folder}: left out {list_some(left_out)}"
        warnings["channels"] = f"{named}, expected names that end with {', '.join(endings)}"
    problems = _describe_incomplete(folder, {case: groups[case] for case in groups if case not in complete}, expected)
    if not groups and left_out:
        problems = [f"{folder}: found {list_some(left_out)}, expected names that end with {', '.join(endings)}"]
        warnings = {}
    return Images(
        {case: found[0] if len(found) == 1 else found for case, found in paths.items()},
        groups.keys() - complete,
        problems,
        warnings,
    )


def _split(name: str, endings: Sequence[str]) -> tuple[str, str]:
    """Split a file's name into id and ending; an empty ending if it has none."""
    if not endings:
        case, ending = re.fullmatch(r"(.*?)(_\d{4})?", name, re.DOTALL).groups(default="")  # type: ignore[union-attr]
        return case, ending
    fitting = (ending for ending in endings if name.endswith(ending) and name != ending)
    ending = max(fitting, key=len, default="")
    return name.removesuffix(ending), ending


def _describe_incomplete(folder: Path, groups: dict[str, dict[str, str]], expected: Sequence[str]) -> list[str]:
    """Describe the cases whose files are not those of all channels: one line for all cases with the same endings."""
    cases: dict[tuple[str, ...], list[str]] = {}
    for case, files in sorted(groups.items()):
        cases.setdefault(tuple(sorted(files)), []).append(case)
    lines = []
    for endings, alike in cases.items():
        found = ", ".join(sorted(Path(path).name for path in groups[alike[0]].values()))
        more = f" and {len(alike) - 1} more like it" if len(alike) > 1 else ""
        number = count_of(len(endings), "file")
        wanted = f"{count_of(len(expected), 'channel')} as in the description"
        names = ", ".join(f"{alike[0]}{ending}" for ending in expected)
        lines.append(f"{folder}: found {number} of {alike[0]} ({found}){more}, expected {wanted} ({names})")
    return lines


def _warn_of_channels(folder: Path, groups: dict[str, dict[str, str]]) -> dict[str, str]:
    """Warn of files that look like several channels of each case, where each is a case of its own."""
    endings = {tuple(sorted(files)) for files in groups.values()}
    numbers = [f"_{channel:04d}" for channel in range(len(next(iter(endings), ())))]
    most = MOST_CHANNELS if len(groups) == 1 else len(numbers)
    if len(endings) > 1 or not 2 <= len(numbers) <= most or sorted(next(iter(endings))) != numbers:
        return {}
    found = f"found {len(numbers)} files with {', '.join(numbers)} of {list_some(sorted(groups))}"
    return {"channels": f"{folder}: {found}, but 1 channel in the description: each file is a case of its own"}

"""What is known of a folder of predictions: their settings, their images, and what this program has written."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from engine.data.folders import SETTINGS, SOURCES, read_settings
from engine.prediction.outputs import read_journals, remove_journals
from engine.runtime.arguments import format_value
from engine.runtime.files import write_text

FORMER_AMP = {"bfloat16": "bf16", "float16": "fp16"}  # in folders of earlier versions
NEWER = {"window": "constant", "mirror": None, "keep_largest": None}  # absent from folders of earlier versions
WRITTEN = "written"  # field of the settings
# Fields of a dataset's description that do not change predictions.
WITHOUT_EFFECT = ("name", "modality", "regions", "surface_tolerance")
LONGEST_SHOWN = 24  # characters of a setting's value in a message


class Record(NamedTuple):
    """What is known of a folder of predictions.

    Args:
        settings: settings of its predictions, those of ``prediction_settings``.
        sources: description of the image of each prediction (``describe_source``), by id.
        written: digests of what this program has written, by the names of the files; None in a folder of an earlier
            version, which did not note them.
    """

    settings: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    written: dict[str, list[str]] | None


def record_written(folder: Path) -> None:
    """Add the digests of what was written to the settings in a folder; called by rank 0 at the end of a run."""
    record = read_record(folder)
    if record is not None:
        save_record(folder, record)


def note(written: dict[str, list[str]], file: str, digests: Iterable[str]) -> None:
    """Add the digests of a file to those that are known."""
    written[file] = list(dict.fromkeys([*written.get(file, []), *digests]))


def read_record(folder: Path) -> Record | None:
    """Read what is known of a folder, with what has been written since; None without readable settings."""
    values = read_settings(folder)
    if values is None:
        return None
    settings = NEWER | {name: value for name, value in values.items() if name not in (SOURCES, WRITTEN)}
    settings["amp"] = FORMER_AMP.get(str(settings.get("amp")), settings.get("amp"))
    sources = {name: source for name, source in values[SOURCES].items() if isinstance(source, dict)}
    found = values.get(WRITTEN)
    written = {name: list(map(str, digests)) for name, digests in found.items()} if isinstance(found, dict) else None
    for file, digests in read_journals(folder).items():
        written = {} if written is None else written
        note(written, file, digests)
    return Record(settings, sources, written)


def save_record(folder: Path, record: Record) -> None:
    """Write the settings of a folder, and remove the journals that are part of it now."""
    written = dict(sorted((record.written or {}).items()))  # in an order that does not depend on the processes
    values = {**record.settings, SOURCES: record.sources, WRITTEN: written}
    write_text(folder / SETTINGS, json.dumps(values, indent=2) + "\n")
    remove_journals(folder)


def differing_settings(settings: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """List the names of the settings that differ from the known ones, and may change a prediction."""
    return [name for name, value in settings.items() if _essential(known.get(name)) != _essential(value)]


def _essential(value: Any) -> Any:
    """Return a setting without those fields of a dataset's description that do not change predictions."""
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if name not in WITHOUT_EFFECT}


def describe_difference(name: str, known: Any, now: Any) -> str:
    """Describe a setting that differs; of a dataset's description, its fields that do."""
    if name != "dataset" or not isinstance(known, dict):
        return f"{name} {_shorten(known)} (now {_shorten(now)})"
    fields = differing_settings(_essential({**dict.fromkeys(known), **now}), known)
    return ", ".join(describe_difference(f"{name} {field}", known.get(field), now.get(field)) for field in fields)


def _shorten(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list | str):  # one item per network
        return " and ".join(map(_shorten, value))
    text = format_value(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."

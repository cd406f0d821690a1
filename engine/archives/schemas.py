"""The dataset.json of archives: which folder it describes, the cases it lists, and a kind completed by it."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from engine.archives.kinds import Kind
from engine.archives.sources import Source
from engine.archives.table import MSD_TASKS
from engine.data.datasets import DATASETS
from engine.data.foreign_descriptions import translate
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.wording import list_some

NAME = "dataset.json"
ENDINGS = (".nii.gz", ".nii")


class Schema(NamedTuple):
    """A dataset.json and its folder.

    Args:
        path: what messages call it.
        source: files below its folder.
        values: its content.
    """

    path: str
    source: Source
    values: dict[str, Any]

    def listed(self, key: str) -> frozenset[str]:
        """Return the ids of a list of cases: paths of images, or objects with one."""
        items = self.values.get(key)
        images = [item.get("image") if isinstance(item, dict) else item for item in _as_list(items)]
        return frozenset(
            re.sub(r"\.nii(\.gz)?$", "", PurePosixPath(path).name) for path in images if isinstance(path, str)
        )


def pick_schema(source: Source, kind: Kind) -> Schema | None:
    """Return the one dataset.json with the field that a kind requires, or None if there is none.

    Raises:
        InputError: there are several, or one is not JSON.
    """
    found = [schema for schema in _read_schemas(source) if isinstance(schema.values.get(kind.schema), dict)]
    if len(found) > 1:
        paths = list_some([schema.path for schema in found])
        raise InputError(f"--source: found {len(found)} datasets ({paths}), expected one; name its folder")
    return found[0] if found else None


def _read_schemas(source: Source) -> Iterable[Schema]:
    for name, member in source.members.items():
        folder, _, file = name.rpartition("/")
        if file != NAME:
            continue
        try:
            values = json.loads(source.read(name))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{member}: is not JSON ({error}), expected the description of a dataset") from error
        if isinstance(values, dict):
            yield Schema(str(member), source.below(f"{folder}/" if folder else ""), values)


def complete_msd(kind: Kind, schema: Schema) -> Kind:
    """Complete the kind of MSD by the task: its expected number of cases, its classes and channels.

    Raises:
        InputError: labels that cannot be expressed.
    """
    listed = schema.listed("training")
    prefix = re.sub(r"_?\d+$", "", min(listed, default=""))
    described, _, _ = translate(schema.values, Path(schema.path))
    labels = _require_labels(described["labels"], schema.path)
    names = _different([str(name) for name in described["channels"]])
    kind = replace(
        kind,
        name=str(described["name"]),
        modality=_find_modality(names),
        classes=labels,
        channels=dict.fromkeys(names, ""),
        expected={"Tr": len(listed)},
    )
    task = MSD_TASKS.get(prefix)
    if task is None or (task.paper and len(labels) != len(DATASETS[task.paper].classes)):
        licence = schema.values.get("licence") or schema.values.get("license") or "none"
        return replace(kind, title=f"MSD's format, {kind.name}", page=schema.path, licence=str(licence))
    kind = replace(kind, title=f"{kind.title}, {kind.name}", expected={"Tr": task.training}, notes=task.notes)
    kind = replace(kind, paper=task.paper, split=task.split)
    return replace(kind, classes=None, channels={}) if task.paper else kind


def complete_nnunet(kind: Kind, schema: Schema) -> Kind:
    """Complete the kind of nnU-Net by its dataset.json: channels, classes, regions, number of cases.

    Raises:
        InputError: files of another format, or labels that cannot be expressed.
    """
    values = schema.values
    ending = values.get("file_ending", ENDINGS[0])
    if ending not in ENDINGS:
        raise InputError(
            f'{schema.path}: found the file_ending "{ending}", expected .nii.gz or .nii; convert the files'
        )
    described, _, _ = translate(values, Path(schema.path))
    names = _different([str(name) for name in described["channels"]])
    classes, regions = split_regions(_require_labels(described["labels"], schema.path))
    number = values.get("numTraining")
    return replace(
        kind,
        title=f"{kind.title} {described['name']}",
        name=str(described["name"]),
        modality=_find_modality(names),
        classes=classes,
        regions=regions,
        channels={name: f"_{place:04d}" for place, name in enumerate(names)},
        expected={"Tr": number} if isinstance(number, int) else {},
    )


def name_explicit_files(schema: Schema) -> Source:
    """Return the files that nnU-Net's field "dataset" names, with the names that they would have without that field.

    The field maps ids to {"images": [path, ...], "label": path}; paths are relative to the folder of the dataset.json.
    Files that are not there are left out.

    Raises:
        InputError: an entry without these.
    """
    members, problems = {}, []
    for case, files in schema.values["dataset"].items():
        try:
            wanted = {f"imagesTr/{case}_{place:04d}": PurePosixPath(path) for place, path in enumerate(files["images"])}
            wanted[f"labelsTr/{case}"] = PurePosixPath(files["label"])
        except (TypeError, KeyError):
            problems.append(f'{schema.path}: dataset: {case}: expected "images" with a list of paths, "label" with one')
            continue
        for name, path in wanted.items():
            ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), "")
            if str(path) in schema.source.members:
                members[name + ending] = schema.source.members[str(path)]
    raise_problems(problems)
    return Source(schema.source.path, members)


def split_regions(labels: dict[str, Any]) -> tuple[dict[str, int | list[int]], dict[str, list[str]]]:
    """Convert nnU-Net's labels, which may overlap, to classes and unions of classes.

    Values that the same labels share make up a class. It has the name of the label with exactly these values, or is
    called by them. Labels of several classes are regions.

    Returns: classes with their values, and regions with their classes.
    """
    values_of = {name: frozenset(_as_list(value)) for name, value in labels.items()}
    sharing = defaultdict(list)
    for value in sorted({value for values in values_of.values() for value in values}):
        sharing[tuple(name for name, values in values_of.items() if value in values)].append(value)
    classes: dict[str, int | list[int]] = {}
    members = defaultdict(list)
    for names, values in sharing.items():
        exact = (name for name in names if values_of[name] == frozenset(values))
        own = next(exact, f"label {'+'.join(map(str, values))}")
        classes[own] = values[0] if len(values) == 1 else values
        for name in names:
            if name != own:
                members[name].append(own)
    return classes, {name: found for name, found in members.items() if name not in classes}


def _require_labels(labels: Any, path: str) -> dict[str, Any]:
    if not isinstance(labels, dict) or not all(_is_label(value) for value in labels.values()):
        raise InputError(f"{path}: found labels {json.dumps(labels)}, expected names with whole numbers")
    return labels


def _is_label(value: Any) -> bool:
    return bool(_as_list(value)) and all(type(item) is int for item in _as_list(value))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _find_modality(channels: list[str]) -> str:
    """Return the modality, if the name of the only channel tells it."""
    return channels[0] if channels in (["CT"], ["MRI"]) else ""


def _different(names: list[str]) -> list[str]:
    """Number names that occur more than once."""
    return [name if names.count(name) == 1 else f"{name} {place}" for place, name in enumerate(names)]

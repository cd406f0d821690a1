"""The JSON form of a dataset description: its fields, their checks, and the descriptions of MSD and nnU-Net v2."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.functional_validators import AfterValidator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from pydantic_core.core_schema import ValidationInfo

from engine.data.datasets import DEFAULT_TOLERANCE, IGNORE_LABEL, LARGEST, NEUTRAL, LabelValues
from engine.data.foreign_descriptions import translate
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.wording import count_of

MAX_CLASSES = 255  # class indices are uint8, and one of them marks ignored voxels
LONGEST_SHOWN = 200  # characters of a value in a message
PLANNER = "tools.check_data --write_description"
COLUMNS = ("case", "mean")  # of the tables of scores, beside those of classes and regions
LARGEST_VALUE = 2**24 - 1  # float32, the type of many label maps, holds all whole numbers up to it


@dataclass(frozen=True)
class Expected:
    """Annotation of a field: the words for what is expected of it, the same whatever is wrong."""

    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self.check, handler(source))

    def check(self, value: Any, validate: Callable[[Any], Any]) -> Any:
        """Validate a value as pydantic does, and raise any problem in the field's own words."""
        try:
            return validate(value)
        except ValidationError as error:
            places = dict.fromkeys(item["loc"][0] for item in error.errors() if item["loc"])
            parts = value if isinstance(value, dict) else {}
            found = ", ".join(f"{_show(place)}: {_show(parts[place])}" for place in places if place in parts)
            raise problem(f"found {found or _show(value)}, expected {self.text}") from None


def problem(text: str) -> PydanticCustomError:
    """Make the error of a field from a whole sentence."""
    return PydanticCustomError("problem", "{text}", {"text": text})


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _not_a_file(ending: str) -> str:
    if ending.lower().endswith((".gz", ".nii")) or "/" in ending:
        raise ValueError
    return ending


def _without_default(schema: dict[str, Any]) -> None:
    """Leave out a default that stands for a missing field, and would not be valid in one."""
    del schema["default"]


def _increasing(window: list[float]) -> list[float]:
    if window[0] >= window[1]:
        raise ValueError
    return window


Name = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Value = Annotated[int, Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE)]
Intensity = Annotated[float, Field(gt=-LARGEST, lt=LARGEST)]
Side = Annotated[float, Field(gt=0, lt=LARGEST)]
Ending = Annotated[Name, AfterValidator(_not_a_file)]
Labels = dict[str, int | list[int]]


class Fields(BaseModel):
    """Object with exactly the declared fields, and values of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ZScore(Fields):
    """Subtract the mean of all voxels, and divide by their standard deviation."""

    zscore: Literal[True]


class WindowRule(Fields):
    """Map a range of intensities (HU for CT) to 0..1, and clip the rest."""

    window: Annotated[list[Intensity], Field(min_length=2, max_length=2), AfterValidator(_increasing)]


Rule = ZScore | WindowRule


class Description(Fields):
    """Description of a dataset for --dataset."""

    schema_file: str = Field("", alias="$schema", description="this schema, for editors")
    name: Annotated[Name, Expected("some text")] = Field(description="printed in messages and stored in the checkpoint")
    modality: Annotated[Name, Expected("some text")] = Field(
        "", description="CT, MRI, ...; only a plan of check_data depends on it", json_schema_extra=_without_default
    )
    labels: Annotated[
        dict[Name, Value | Annotated[list[Value], Field(min_length=1)]],
        Expected("names with a whole number, or a list of whole numbers, that stand for them in label maps"),
    ] = Field(
        description="classes and their values in label maps; several values of one class are merged, and the first is "
        'that of predictions. The background has the value 0, or else the name "background". Voxels of the label '
        f'"{IGNORE_LABEL}" belong to no known class: they are left out of the loss, the centres of crops and the '
        "scores."
    )
    regions: Annotated[
        dict[Name, Annotated[list[Name], Field(min_length=1)]], Expected("names with a list of labels")
    ] = Field({}, description="unions of labels that are scored besides the labels")
    surface_tolerance: Annotated[
        Side | Annotated[dict[Name, Side], Field(min_length=1)],
        Expected("a positive number, in mm, or names of labels and regions with such numbers"),
    ] = Field(
        {},
        description="distance between two surfaces that the normalised surface Dice of tools.evaluate accepts, mm, for "
        f"all labels and regions or by name; {DEFAULT_TOLERANCE:g} where none is given",
        json_schema_extra=_without_default,
    )
    channels: Annotated[
        Annotated[list[Name], Field(min_length=1)] | Annotated[dict[Name, Ending], Field(min_length=1)],
        Expected("a list of channel names, or channel names with what follows the id in the names of their files"),
    ] = Field(
        ["image"],
        description="input channels. A list of names goes with files <id>_0000.nii.gz, <id>_0001.nii.gz, ... or one "
        'file per case; {"T1": "_t1", "T2": "_t2"} with <id>_t1.nii.gz and <id>_t2.nii.gz.',
    )
    spacing: Annotated[list[Side], Field(min_length=3, max_length=3), Expected("three positive numbers, in mm")] = (
        Field(description="voxel size that volumes are resampled to, mm, along R-L, A-P and I-S")
    )
    intensity: Annotated[
        Rule | dict[Name, Rule],
        Expected('{"zscore": true}, {"window": [low, high]}, or one of them for each channel by its name'),
    ] = Field(description="how intensities are scaled, in all channels or by channel")
    nan: Annotated[Literal["error", "minimum"], Expected('"error" or "minimum"')] = Field(
        "error", description="NaN in images is an error, or stands for the minimum of its channel"
    )

    @field_validator("labels", mode="wrap")
    @classmethod
    def check_labels(cls, labels: Any, validate: Callable[[Any], Labels]) -> Labels:
        """Refuse labels that share a value, or without a background."""
        try:
            problems, understood = [], validate(labels)
        except ValidationError as error:
            problems, understood = [item["msg"] for item in error.errors()], _understood(labels)
        else:
            problems += _missing_classes(understood)
        problems += [*_shared_values(understood), *_clashing_names(understood)]
        if problems:
            raise problem("; ".join(problems))
        return understood

    @field_validator("regions")
    @classmethod
    def check_regions(cls, regions: dict[str, list[str]], info: ValidationInfo) -> dict[str, list[str]]:
        """Refuse regions of unknown or repeated labels, or with the name of a label."""
        assert info.context is not None
        labels = info.context["labels"]  # as in the file, with any problems of their own
        classes = _foreground(labels)
        problems = []
        for name, members in regions.items() if labels else ():
            if name in labels:
                problems.append(f"found {json.dumps(name)} among the labels as well, expected another name")
            if unknown := [json.dumps(member) for member in members if member not in classes]:
                problems.append(f"{name}: found {', '.join(unknown)}, expected some of {', '.join(classes)}")
            if len(set(members)) < len(members):
                problems.append(f"{name}: found {json.dumps(members)}, expected different labels")
        problems += _clashing_names(regions)
        if problems:
            raise problem("; ".join(problems))
        return regions

    @field_validator("surface_tolerance")
    @classmethod
    def check_surface_tolerance(
        cls, tolerance: float | dict[str, float], info: ValidationInfo
    ) -> float | dict[str, float]:
        """Refuse tolerances of what is not scored."""
        assert info.context is not None
        scored = [*_foreground(info.context["labels"]), *info.context["regions"]]  # as in the file
        names = tolerance if isinstance(tolerance, dict) and scored else {}
        if unknown := [json.dumps(name) for name in names if name not in scored]:
            raise problem(f"found {', '.join(unknown)}, expected some of {', '.join(map(json.dumps, scored))}")
        return tolerance

    @field_validator("channels")
    @classmethod
    def check_channels(cls, channels: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
        """Refuse channels with the same name or ending."""
        words = list(channels.values()) if isinstance(channels, dict) else channels
        if len(set(words)) < len(words):
            raise problem(f"found {json.dumps(channels)}, expected different names and endings")
        return channels

    @field_validator("intensity")
    @classmethod
    def check_intensity(cls, intensity: Rule | dict[str, Rule], info: ValidationInfo) -> Rule | dict[str, Rule]:
        """Refuse rules by channel that do not name exactly the channels."""
        assert info.context is not None
        channels = list(info.context["channels"])  # as in the file
        if isinstance(intensity, dict) and channels and intensity.keys() != set(channels):
            found, expected = json.dumps(list(intensity)), json.dumps(channels)
            raise problem(f"found rules for {found}, expected one for each of the channels {expected}")
        return intensity

    def to_arguments(self) -> dict[str, Any]:
        """Return the arguments of ``DatasetDescription``."""
        classes, tolerance = _classes(self.labels), self.surface_tolerance
        ignored = tuple(value for name in self.labels if _is_ignored(name) for value in _as_list(self.labels[name]))
        channels, intensity = tuple(self.channels), self.intensity
        if not isinstance(tolerance, dict):
            tolerance = dict.fromkeys([*_foreground(self.labels), *self.regions], tolerance)
        rules = [intensity[name] if isinstance(intensity, dict) else intensity for name in channels]
        return {
            "name": self.name,
            "modality": self.modality,
            "classes": tuple(classes),
            "spacing": tuple(map(float, self.spacing)),
            "windows": tuple((*rule.window,) if isinstance(rule, WindowRule) else None for rule in rules),
            "labels": LabelValues(tuple(map(tuple, classes.values())), ignored),
            "channels": channels,
            "endings": tuple(self.channels.values()) if isinstance(self.channels, dict) else (),
            "regions": tuple(
                (name, tuple(sorted(list(classes).index(member) for member in members)))
                for name, members in self.regions.items()
            ),
            "surface_tolerance": tuple((name, float(distance)) for name, distance in tolerance.items()),
            "nan_is_minimum": self.nan == "minimum",
        }


def parse_description(values: Any, source: str) -> dict[str, Any]:
    """Check a JSON object, and return the arguments of ``DatasetDescription``.

    Args:
        values: the object: a description in the form of ``Description``, or a dataset.json of MSD or nnU-Net v2.
        source: name of the file, for messages.
    Raises:
        InputError: one line per problem.
    """
    if not isinstance(values, dict):
        found = f"found {_show(values)}, expected an object"
        raise InputError(f"{source}: {found} with the fields {', '.join(_field_names())}")
    values, origin, missing = translate(values, Path(source))
    known = {field.alias or name for name, field in Description.model_fields.items()}
    expected = ", ".join(_field_names())
    # Before pydantic, which cannot name a field whose name is no valid text.
    problems = [f"found the field {json.dumps(name)}, expected only {expected}" for name in values if name not in known]
    try:
        labels, regions = values.get("labels"), values.get("regions")
        channels = values.get("channels", Description.model_fields["channels"].default)
        made = Description.model_validate(
            {name: value for name, value in values.items() if name in known},
            context={
                "labels": labels if isinstance(labels, dict) else {},
                "regions": regions if isinstance(regions, dict) else {},
                "channels": channels if isinstance(channels, dict | list) else [],
            },
        )
    except ValidationError as error:
        problems = [*_lines(error, missing), *problems]
    raise_problems([f"{source}: {line}" for line in problems])
    return {**made.to_arguments(), "origin": origin and f"{source}: {origin}"}


def _lines(error: ValidationError, missing: str) -> Iterator[str]:
    """Yield a line for each problem.

    Args:
        error: problems of all fields.
        missing: why a field may be missing.
    """
    expected = {
        field.alias or name: item.text
        for name, field in Description.model_fields.items()
        for item in field.metadata
        if isinstance(item, Expected)
    }
    for found in error.errors(include_url=False):
        name, text = str(found["loc"][0]), found["msg"]
        if found["type"] == "problem":
            yield f"{name}: {text}"
        elif found["type"] == "missing":
            planned = f"; {PLANNER} chooses it" if name in NEUTRAL else ""
            yield f"{name}: found none{missing}, expected {expected[name]}{planned}"
        else:  # of $schema
            yield f"{name}: found {_show(found['input'])}, expected some text"


def _field_names() -> list[str]:
    """List the names of the fields, those that may be left out in brackets."""
    fields = Description.model_fields.items()
    return [name if field.is_required() else f"[{name}]" for name, field in fields if not field.alias]


def _understood(labels: Any) -> Labels:
    """Return those labels that are valid by themselves."""
    items = labels.items() if isinstance(labels, dict) else ()
    return {name: values for name, values in items if all(type(value) is int for value in _as_list(values))}


def _as_list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _shared_values(labels: Labels) -> Iterator[str]:
    """Yield a line for each value that several labels have, or one has twice."""
    names = defaultdict(list)
    for name, values in labels.items():
        for value in _as_list(values):
            names[value].append(name)
    for value, sharing in names.items():
        if len(sharing) > 1:
            expected = (
                "an ignored value that no class has"
                if any(map(_is_ignored, sharing))
                else "one label for each value; unions of labels are regions"
            )
            yield f"found the value {value} of {' and '.join(map(json.dumps, sharing))}, expected {expected}"


def _missing_classes(labels: Labels) -> Iterator[str]:
    """Yield a line if labels are not a background and at least one other class."""
    classes = [name for name in labels if not _is_ignored(name)]
    if not 2 <= len(classes) <= MAX_CLASSES:
        yield f"found {count_of(len(classes), 'class')}, expected 2 to {MAX_CLASSES}, the background among them"
    elif _find_background(labels) is None:
        yield 'found no background, expected a label with the value 0 or the name "background"'


def _clashing_names(names: Iterable[str]) -> list[str]:
    """Return a line for each name that the tables of scores have for something else."""
    return [f"found the name {json.dumps(name)}, which tables need for themselves" for name in names if name in COLUMNS]


def _is_ignored(name: str) -> bool:
    return name.lower() == IGNORE_LABEL


def _find_background(labels: dict[str, Any]) -> str | None:
    """Return the name of the background: the class with the value 0, or else the one of that name."""
    with_zero = [name for name, values in labels.items() if 0 in _as_list(values) and not _is_ignored(name)]
    named = [name for name in labels if name.lower() == "background"]
    return next(iter([*with_zero, *named]), None)


def _foreground(labels: dict[str, Any]) -> list[str]:
    """List the names of the classes without the background."""
    background = _find_background(labels)
    return [name for name in labels if not _is_ignored(name) and name != background]


def _classes(labels: Labels) -> dict[str, list[int]]:
    """Return the values of each class, the background first, the others in order of their first values."""
    classes = {name: _as_list(values) for name, values in labels.items() if not _is_ignored(name)}
    background = _find_background(labels)
    return dict(sorted(classes.items(), key=lambda item: (item[0] != background, item[1][0])))

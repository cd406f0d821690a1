"""Dataset descriptions: what the pipelines need to know of a dataset, and the five of the paper."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from engine.runtime.arguments import format_value
from engine.runtime.errors import InputError

LARGEST = 1e9  # bound of spacings in mm and of intensities; NaN and infinity are not below it
IGNORE_LABEL = "ignore"  # name of a label that is no class, as in nnU-Net
DEFAULT_TOLERANCE = 2.0  # mm, of the surface Dice: the longest side of the voxels to which the paper resamples CT
PREPARATION = ("spacing", "intensity", "nan")  # fields that say how volumes are prepared

Window = tuple[float, float]


@dataclass(frozen=True)
class LabelValues:
    """Values that stand for each class in the label maps of a dataset.

    Args:
        classes: values of each class, the background first. Predictions are written with a class's first value.
        ignored: values of voxels whose class is unknown.
    """

    VERSION = 1

    classes: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...] = ()

    @classmethod
    def consecutive(cls, count: int) -> Self:
        """Return the values 0, 1, ..., count - 1, one per class."""
        return cls(tuple((value,) for value in range(count)))

    def __str__(self) -> str:
        """List the values; those from 0 on without a gap as a range."""
        values = sorted([*(value for values in self.classes for value in values), *self.ignored])
        if values == list(range(len(values))):
            return f"whole numbers from 0 to {values[-1]}"
        return ", ".join(map(str, values))


@dataclass(frozen=True)
class DatasetDescription:
    """Description of one dataset; ``engine.data.description_file`` has its JSON form.

    Args:
        name: name of the dataset.
        modality: "CT", "MRI", ... or "" if it is not given; information for readers and plans only.
        classes: class names, the background first.
        spacing: voxel size that volumes are resampled to, mm, along the right-left, anterior-posterior and
            inferior-superior axes.
        windows: for each channel the intensities mapped to 0 and 1, the rest clipped (Hounsfield units for CT), or None
            for the z-score of each volume.
        channels: names of the input channels.
        endings: what follows the id in the name of each channel's file; none for _0000, _0001, ... or one file.
        labels: values of the classes in files.
        regions: names of further structures that are scored, each a union of classes, with the indices of these.
        surface_tolerance: names of classes and regions with the distance that the normalised surface Dice accepts
            between two surfaces, mm; ``DEFAULT_TOLERANCE`` for the others.
        nan_is_minimum: whether NaN in an image stands for the minimum of its channel; otherwise it is an error.
        fix_affine: whether the affine of an image also holds for its other channels and its label, if their shape is
            the same. Not part of the JSON form: a flag asks for it, each time.
        origin: a line on what was taken from a description of another program, if it was one.
    """

    name: str
    modality: str
    classes: tuple[str, ...]
    spacing: tuple[float, float, float]
    windows: tuple[Window | None, ...]
    labels: LabelValues
    channels: tuple[str, ...] = ("image",)
    endings: tuple[str, ...] = ()
    regions: tuple[tuple[str, tuple[int, ...]], ...] = ()
    surface_tolerance: tuple[tuple[str, float], ...] = ()
    nan_is_minimum: bool = False
    fix_affine: bool = False
    origin: str = field(default="", compare=False)

    @property
    def notes(self) -> list[str]:
        """What a run should say of the description, one line each."""
        notes = [self.origin] if self.origin else []
        if self.nan_is_minimum:
            notes.append("images: NaN stands for the minimum of its channel, as the description says")
        if any(name.lower() == "background" for name in self.classes[1:]):
            notes.append(f'labels: "{self.classes[0]}", with the value 0, is the background; "background" is a class')
        return notes

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Everything that is scored, foreground classes and then regions: indices of classes by name."""
        return {name: (index,) for index, name in enumerate(self.classes) if index} | dict(self.regions)

    @property
    def tolerances(self) -> dict[str, float]:
        """Tolerance of the surface Dice of every structure, mm."""
        return dict.fromkeys(self.structures, DEFAULT_TOLERANCE) | dict(self.surface_tolerance)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values, in the form that ``from_json`` reads; optional fields without content are left out.

        Former descriptions have the same form as in earlier versions, with which resumed runs and folders of
        predictions compare them.
        """
        names = [*self.classes, IGNORE_LABEL] if self.labels.ignored else self.classes
        values = [*self.labels.classes, self.labels.ignored] if self.labels.ignored else self.labels.classes
        rules = [{"zscore": True} if window is None else {"window": list(window)} for window in self.windows]
        tolerances = dict(self.surface_tolerance)
        same = tolerances.keys() == self.structures.keys() and len(set(tolerances.values())) == 1
        optional = {
            "regions": {name: [self.classes[index] for index in members] for name, members in self.regions},
            "surface_tolerance": self.surface_tolerance[0][1] if same else tolerances,
            "nan": "minimum" if self.nan_is_minimum else "",
        }
        return {
            "name": self.name,
            **({"modality": self.modality} if self.modality else {}),
            "labels": {
                name: list(merged) if len(merged) > 1 else merged[0] for name, merged in zip(names, values, strict=True)
            },
            "spacing": list(self.spacing),
            "intensity": rules[0] if len(set(self.windows)) == 1 else dict(zip(self.channels, rules, strict=True)),
            "channels": dict(zip(self.channels, self.endings, strict=True)) if self.endings else list(self.channels),
            **{name: value for name, value in optional.items() if value},
        }

    def differences(self, other: Self, names: Sequence[str]) -> list[str]:
        """Describe the fields of the JSON form that differ from those of another description.

        Args:
            other: the other description.
            names: names of the fields to compare.
        Returns: a phrase for each, such as "spacing 1.0 1.0 2.0, expected 1.0 1.0 1.0".
        """
        own, others = self.to_json(), other.to_json()
        return [
            f"{name} {format_value(own.get(name))}, expected {format_value(others.get(name))}"
            for name in names
            if json.dumps(own.get(name)) != json.dumps(others.get(name))  # as text: the order of channels matters
        ]

    @classmethod
    def from_json(cls, values: Any, source: str) -> Self:
        """Check a JSON object and build the description.

        Args:
            values: the object.
            source: name of the file, for messages.
        Raises:
            InputError: one line per problem, with the source, the field, what was found and what was expected.
        """
        from engine.data.description_file import parse_description  # imports pydantic, which --help does not need

        return cls(**parse_description(values, source))

    @classmethod
    def read(cls, path: Path, preprocessed: bool = True) -> Self:
        """Read a JSON file; InputError if it cannot be read or does not describe a dataset.

        Args:
            path: the file.
            preprocessed: as in ``find_description``.
        """
        values = read_values(path)
        if not preprocessed and isinstance(values, dict):
            values = NEUTRAL | values
        return cls.from_json(values, str(path))


def read_values(path: Path) -> Any:
    """Read the JSON file of ``--dataset``; InputError if it cannot be read."""
    try:
        # In UTF-8, -16 or -32, with or without a byte-order mark.
        return json.loads(path.read_bytes(), object_pairs_hook=refuse_repetitions)
    except OSError as error:
        raise InputError(f"--dataset: {path} cannot be read ({error.strerror}), expected a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--dataset: {path} is not JSON ({error}), expected a dataset description") from error


def refuse_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; ValueError if it has a name twice, of which JSON would keep the last."""
    names = [name for name, _ in pairs]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{', '.join(map(json.dumps, repeated))} twice in one object")
    return dict(pairs)


AMOS_ORGANS = (
    *("background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta"),
    *("postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus"),
)
SOFT_TISSUE = (-125.0, 275.0)  # Hounsfield units
# What stands for the fields of preprocessing where nothing is preprocessed, or they are chosen later.
NEUTRAL = {"spacing": [1.0, 1.0, 1.0], "intensity": {"zscore": True}}


def _describe(
    name: str,
    classes: tuple[str, ...],
    window: Window,
    modality: str = "CT",
    spacing: tuple[float, float, float] = (1.5, 1.5, 2.0),
) -> DatasetDescription:
    return DatasetDescription(name, modality, classes, spacing, (window,), LabelValues.consecutive(len(classes)))


DATASETS = {
    description.name: description
    for description in (
        _describe("amos", AMOS_ORGANS, SOFT_TISSUE),
        _describe("amos_mri", AMOS_ORGANS[:14], (0.0, 1000.0), "MRI", (1.0, 1.0, 1.0)),
        _describe("kits", ("background", "kidney", "tumor", "cyst"), SOFT_TISSUE),
        _describe("pancreas", ("background", "pancreas", "tumor"), SOFT_TISSUE),
        _describe("hepatic", ("background", "hepatic vessel", "tumor"), (0.0, 230.0)),
    )
}


def find_description(dataset: str, fix_affine: bool = False, preprocessed: bool = True) -> DatasetDescription:
    """Find the description for ``--dataset``.

    Args:
        dataset: a name in ``DATASETS``, or the path of a JSON file.
        fix_affine: as in ``DatasetDescription``.
        preprocessed: whether volumes will be preprocessed. Otherwise the file may lack spacing and intensity, whose
            values then mean nothing.
    Raises:
        InputError: the value is neither of these, or the file does not describe a dataset.
    """
    if dataset in DATASETS:
        return replace(DATASETS[dataset], fix_affine=fix_affine)
    if Path(dataset).suffix.lower() == ".json":
        return replace(DatasetDescription.read(Path(dataset), preprocessed), fix_affine=fix_affine)
    raise InputError(f"--dataset: found {dataset!r}, expected {', '.join(DATASETS)} or the path of a .json file")

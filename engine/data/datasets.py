"""Dataset descriptions: what the pipelines need to know of a dataset, the JSON form, and the five of the paper."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engine.runtime.errors import InputError

MAX_CLASSES = 256  # label maps are kept and written as uint8
LARGEST = 1e9  # bound of spacings in mm and of intensities; NaN and infinity are not below it


@dataclass(frozen=True)
class DatasetDescription:
    """Description of one dataset.

    Args:
        name: name of the dataset.
        modality: "CT", "MRI", ... or "" if it is not given; information for readers only.
        classes: class names, in order of their label values from 0 (background).
        spacing: voxel size that volumes are resampled to, mm, along the right-left, anterior-posterior and
            inferior-superior axes.
        window: intensities mapped to 0 and 1, the rest clipped (Hounsfield units for CT); None for the z-score of each
            volume.
        channels: names of the input channels.
    """

    name: str
    modality: str
    classes: tuple[str, ...]
    spacing: tuple[float, float, float]
    window: tuple[float, float] | None
    channels: tuple[str, ...] = ("image",)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values, in the form that ``from_json`` reads; an empty modality is left out."""
        return {
            "name": self.name,
            **({"modality": self.modality} if self.modality else {}),
            "labels": {name: value for value, name in enumerate(self.classes)},
            "spacing": list(self.spacing),
            "intensity": {"zscore": True} if self.window is None else {"window": list(self.window)},
            "channels": list(self.channels),
        }

    @classmethod
    def from_json(cls, values: Any, source: str) -> Self:
        """Check a JSON object and build the description.

        Args:
            values: the object; ``modality`` and ``channels`` are optional (default: none, one channel).
            source: name of the file, for messages.
        Raises:
            InputError: the object is invalid; names the source, the field, what was found and what was expected.
        """
        required, optional = {"name", "labels", "spacing", "intensity"}, {"channels", "modality"}
        if not isinstance(values, dict) or not required <= set(values) <= required | optional:
            found = ", ".join(map(json.dumps, values)) if isinstance(values, dict) else type(values).__name__
            fields = [*sorted(required), *(f"[{name}]" for name in sorted(optional))]
            raise InputError(f"{source}: found {found}, expected the fields {', '.join(fields)}")

        def expect(field: str, fine: bool, expected: str) -> None:
            if not fine:
                raise InputError(f"{source}: {field}: found {json.dumps(values.get(field))}, expected {expected}")

        expect("name", _is_name(values["name"]), "some text")
        expect("modality", "modality" not in values or _is_name(values["modality"]), "some text")
        labels, spacing, intensity = values["labels"], values["spacing"], values["intensity"]
        consecutive = (
            isinstance(labels, dict)
            and all(_is_name(name) and type(value) is int for name, value in labels.items())
            and sorted(labels.values()) == list(range(len(labels)))
        )
        expected = f"two to {MAX_CLASSES} class names with the values 0 (background), 1, 2, ..."
        expect("labels", consecutive and 2 <= len(labels) <= MAX_CLASSES, expected)
        expect("spacing", _are_numbers(spacing, 3) and min(spacing) > 0, "three positive numbers, in mm")
        zscore = isinstance(intensity, dict) and intensity == {"zscore": True}
        window = None if zscore or not isinstance(intensity, dict) else intensity.get("window")
        windowed = window is not None and len(intensity) == 1 and _are_numbers(window, 2) and window[0] < window[1]
        expect("intensity", zscore or windowed, '{"zscore": true} or {"window": [low, high]}')
        channels = values.get("channels", ["image"])
        named = isinstance(channels, list) and channels and all(map(_is_name, channels))
        expect("channels", bool(named) and len(set(channels)) == len(channels), "a list of different channel names")
        return cls(
            name=values["name"],
            modality=values.get("modality", ""),
            classes=tuple(sorted(labels, key=labels.__getitem__)),
            spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
            window=None if window is None else (float(window[0]), float(window[1])),
            channels=tuple(channels),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a JSON file; InputError if it cannot be read or does not describe a dataset."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"--dataset: {path} cannot be read ({error.strerror}), expected a JSON file") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"--dataset: {path} is not JSON ({error}), expected a dataset description") from error
        return cls.from_json(values, str(path))


def _is_name(value: Any) -> bool:
    """Check that a value is text that can be printed in one line and written to any file."""
    return isinstance(value, str) and value != "" and value.isprintable()


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and abs(value) < LARGEST for value in values)
    )


AMOS_ORGANS = (
    *("background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta"),
    *("postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus"),
)
CT_SPACING = (1.5, 1.5, 2.0)
SOFT_TISSUE = (-125.0, 275.0)  # Hounsfield units

DATASETS = {
    description.name: description
    for description in (
        DatasetDescription("amos", "CT", AMOS_ORGANS, CT_SPACING, SOFT_TISSUE),
        DatasetDescription("amos_mri", "MRI", AMOS_ORGANS[:14], (1.0, 1.0, 1.0), (0.0, 1000.0)),
        DatasetDescription("kits", "CT", ("background", "kidney", "tumor", "cyst"), CT_SPACING, SOFT_TISSUE),
        DatasetDescription("pancreas", "CT", ("background", "pancreas", "tumor"), CT_SPACING, SOFT_TISSUE),
        DatasetDescription("hepatic", "CT", ("background", "hepatic vessel", "tumor"), CT_SPACING, (0.0, 230.0)),
    )
}


def find_description(dataset: str) -> DatasetDescription:
    """Find the description for ``--dataset``: a name in ``DATASETS``, or the path of a JSON file.

    Raises:
        InputError: the value is neither of these, or the file does not describe a dataset.
    """
    if dataset in DATASETS:
        return DATASETS[dataset]
    if Path(dataset).suffix == ".json":
        return DatasetDescription.read(Path(dataset))
    raise InputError(f"--dataset: found {dataset!r}, expected {', '.join(DATASETS)} or the path of a .json file")
